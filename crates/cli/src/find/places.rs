//! The products that keep images in a containerd, and where each of them has its socket and its root: data, and no I/O
//! but the one look into a host's directory.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    Orlop,
    MicroK8s,
    K3s,
    Rke2,
    K0s,
    Containerd,
    Docker,
    RootlessDocker,
    RootlessContainerd,
}

/// Which namespace of a product holds its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// Always this one.
    Fixed(&'static str),
    /// The first of these that holds content: several products share such a containerd.
    FirstWithContent(&'static [&'static str]),
}

/// Where Orlop's daemon listens on a system.
pub(crate) const OWN_SOCKET: &str = "/run/orlop/orlop.sock";

/// Where Orlop's store is on a system.
pub(crate) const OWN_ROOT: &str = "/var/lib/orlop";

/// kubelet's.
pub(crate) const KUBERNETES: &str = "k8s.io";

impl Product {
    /// The word in JSON.
    pub(crate) const fn id(self) -> &'static str {
        match self {
            Self::Orlop => "orlop",
            Self::MicroK8s => "microk8s",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::K0s => "k0s",
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::RootlessDocker => "docker-rootless",
            Self::RootlessContainerd => "containerd-rootless",
        }
    }

    /// The words in sentences.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Orlop => "Orlop",
            Self::MicroK8s => "MicroK8s' containerd",
            Self::K3s => "k3s' containerd",
            Self::Rke2 => "rke2's containerd",
            Self::K0s => "k0s' containerd",
            Self::Containerd => "containerd",
            Self::Docker => "Docker's containerd",
            Self::RootlessDocker => "rootless Docker's containerd",
            Self::RootlessContainerd => "rootless containerd",
        }
    }

    /// Where its images are.
    pub(crate) const fn home(self) -> Home {
        match self {
            Self::Orlop | Self::MicroK8s | Self::K3s | Self::Rke2 | Self::K0s => Home::Fixed(KUBERNETES),
            Self::Docker | Self::RootlessDocker => Home::Fixed("moby"),
            // kubeadm's is this one; so is Docker's where a distribution starts it, and nerdctl's.
            Self::Containerd => Home::FirstWithContent(&[KUBERNETES, "moby", "default"]),
            Self::RootlessContainerd => Home::FirstWithContent(&["default", KUBERNETES]),
        }
    }

    /// The file that makes a directory its root.
    pub(crate) const fn database(self) -> &'static str {
        match self {
            Self::Orlop => "meta.db",
            _ => "io.containerd.metadata.v1.bolt/meta.db",
        }
    }

    /// What starts it, for advice.
    pub(crate) const fn start(self) -> &'static str {
        match self {
            Self::Orlop => "orlop serve",
            Self::MicroK8s => "microk8s start",
            Self::K3s => "systemctl start k3s (or k3s-agent)",
            Self::Rke2 => "systemctl start rke2-server (or rke2-agent)",
            Self::K0s => "k0s start",
            Self::Containerd => "systemctl start containerd",
            Self::Docker => "systemctl start docker",
            Self::RootlessDocker => "systemctl --user start docker",
            Self::RootlessContainerd => "systemctl --user start containerd",
        }
    }
}

/// A place where a store may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) product: Product,
    /// Where its server would listen.
    pub(crate) socket: PathBuf,
    /// Where its files would be, as its server says it; none if nobody can know.
    pub(crate) root: Option<PathBuf>,
}

/// What decides which places there are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// Where the host's file system is mounted, if it is not this one.
    pub(crate) host: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR` of whoever asks.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// `XDG_DATA_HOME` of whoever asks.
    pub(crate) data_home: Option<PathBuf>,
    /// The runtime directories of other users, which root may look into.
    pub(crate) others: Vec<PathBuf>,
}

/// Sockets and roots that are the same on every machine, in the order in which they are looked for. k3s and rke2 share a
/// socket: which of them answers, its root tells.
const SYSTEM: &[(Product, &str, &str)] = &[
    (
        Product::MicroK8s,
        "/var/snap/microk8s/common/run/containerd.sock",
        "/var/snap/microk8s/common/var/lib/containerd",
    ),
    (Product::K3s, "/run/k3s/containerd/containerd.sock", "/var/lib/rancher/k3s/agent/containerd"),
    (Product::Rke2, "/run/k3s/containerd/containerd.sock", "/var/lib/rancher/rke2/agent/containerd"),
    (Product::K0s, "/run/k0s/containerd.sock", "/var/lib/k0s/containerd"),
    (Product::Containerd, "/run/containerd/containerd.sock", "/var/lib/containerd"),
    (Product::Docker, "/run/docker/containerd/containerd.sock", "/var/lib/docker/containerd/daemon"),
];

/// The same for one user: product, socket below `XDG_RUNTIME_DIR`, root below `XDG_DATA_HOME`.
const USERS: &[(Product, &str, &str)] = &[
    (Product::RootlessContainerd, "containerd/containerd.sock", "containerd"),
    (Product::RootlessDocker, "docker/containerd/containerd.sock", "docker/containerd/daemon"),
];

/// All places where a store may be, in the order in which they are looked for: the system's Orlop; containerds: this
/// user's own, the system's, other users'.
pub(crate) fn places(around: &Surroundings) -> Vec<Place> {
    let of_user = |runtime: &Path, data: Option<&Path>| {
        let data = data.map(Path::to_owned);
        let runtime = runtime.to_owned();
        USERS.iter().map(move |&(product, socket, root)| Place {
            product,
            socket: runtime.join(socket),
            root: data.as_ref().map(|dir| dir.join(root)),
        })
    };
    let own = around.runtime_dir.iter().flat_map(|dir| of_user(dir, around.data_home.as_deref()));
    let system =
        SYSTEM.iter().map(|&(product, socket, root)| Place { product, socket: socket.into(), root: Some(root.into()) });
    let others = around.others.iter().filter(|dir| Some(*dir) != around.runtime_dir.as_ref());
    let orlop = Place { product: Product::Orlop, socket: OWN_SOCKET.into(), root: Some(OWN_ROOT.into()) };
    std::iter::once(orlop).chain(own).chain(system).chain(others.flat_map(|dir| of_user(dir, None))).collect()
}

/// The product that has its files in a root, as a server names it. `known` is what the socket is known as.
pub(crate) fn product_at(known: Product, root: &Path) -> Product {
    let system = SYSTEM.iter().find(|(_, _, at)| Path::new(at) == root).map(|&(product, _, _)| product);
    // With `--data-dir` only the name of the directory is left.
    let moved = root.components().any(|part| part.as_os_str() == "rke2").then_some(Product::Rke2);
    match known {
        // In a mount namespace of its own it has the system's root.
        Product::RootlessContainerd | Product::RootlessDocker => known,
        Product::K3s => system.or(moved).unwrap_or(known),
        _ => system.unwrap_or(known),
    }
}

/// The directories of all users below a host's `/run/user`.
pub(crate) fn runtime_directories(host: Option<&Path>) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(at_host(host, Path::new("/run/user"))) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    names.into_iter().map(|name| Path::new("/run/user").join(name)).collect()
}

/// Where this process finds what the host has at `path`. Symbolic links are the host's: one to `/data` means `/data`
/// there.
pub(crate) fn at_host(host: Option<&Path>, path: &Path) -> PathBuf {
    let Some(host) = host else { return path.to_owned() };
    let relative = path.strip_prefix("/").unwrap_or(path);
    followed(host, relative).unwrap_or_else(|_| host.join(relative))
}

fn followed(host: &Path, relative: &Path) -> std::io::Result<PathBuf> {
    let only_name = OFlags::PATH | OFlags::CLOEXEC;
    let base = rustix::fs::open(host, only_name | OFlags::DIRECTORY, Mode::empty())?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(&base, relative, only_name, Mode::empty(), inside)?;
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    // A link that leads out of what this process sees has no path here.
    if path.is_absolute() { Ok(path) } else { Err(std::io::ErrorKind::NotFound.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_places_of_his_own_before_the_systems() {
        let around = Surroundings {
            runtime_dir: Some("/run/user/7".into()),
            data_home: Some("/home/u/.local/share".into()),
            others: vec!["/run/user/7".into(), "/run/user/8".into()],
            ..Surroundings::default()
        };
        let found = places(&around);
        let sockets: Vec<_> = found.iter().map(|place| place.socket.to_str().unwrap()).collect();
        assert_eq!(sockets[..2], [OWN_SOCKET, "/run/user/7/containerd/containerd.sock"]);
        assert_eq!(found[2].root.as_deref(), Some(Path::new("/home/u/.local/share/docker/containerd/daemon")));
        assert_eq!(sockets[3], "/var/snap/microk8s/common/run/containerd.sock");
        assert_eq!(sockets.iter().filter(|socket| socket.contains("/7/")).count(), 2);
        assert_eq!(sockets.last(), Some(&"/run/user/8/docker/containerd/containerd.sock"));
        assert_eq!(found.last().unwrap().root, None);
    }

    #[test]
    fn whose_a_socket_is_the_root_tells() {
        let at = |known, root: &str| product_at(known, Path::new(root));
        assert_eq!(at(Product::K3s, "/var/lib/rancher/k3s/agent/containerd"), Product::K3s);
        assert_eq!(at(Product::K3s, "/var/lib/rancher/rke2/agent/containerd"), Product::Rke2);
        assert_eq!(at(Product::K3s, "/data/rke2/agent/containerd"), Product::Rke2);
        assert_eq!(at(Product::K3s, "/data/k3s/agent/containerd"), Product::K3s);
        assert_eq!(at(Product::Containerd, "/var/snap/microk8s/common/var/lib/containerd"), Product::MicroK8s);
        assert_eq!(at(Product::Containerd, "/data/containerd"), Product::Containerd);
        assert_eq!(at(Product::RootlessContainerd, "/var/lib/containerd"), Product::RootlessContainerd);
    }

    #[test]
    fn links_of_a_host_stay_in_it() {
        let host = tempfile::tempdir().unwrap();
        let host = host.path().canonicalize().unwrap();
        std::fs::create_dir_all(host.join("data/rancher")).unwrap();
        std::fs::create_dir_all(host.join("var/lib")).unwrap();
        std::os::unix::fs::symlink("/data/rancher", host.join("var/lib/rancher")).unwrap();
        std::os::unix::fs::symlink("../../../../../..", host.join("data/out")).unwrap();
        let at = |path: &str| at_host(Some(&host), Path::new(path));
        assert_eq!(at("/var/lib/rancher"), host.join("data/rancher"));
        assert_eq!(at("/data/out/var/lib"), host.join("var/lib"));
        assert_eq!(at("/not/there"), host.join("not/there"));
        assert_eq!(at_host(None, Path::new("/var/lib")), Path::new("/var/lib"));
    }
}
