//! Finding the store that a command means when nobody has said: Orlop's own first, then the containerds of well-known
//! products ([`mod@places`]), each asked whether it is there ([`probe`]).
//!
//! # Invariants
//! - Looking for a store changes nothing, anywhere.
//! - What was said (`--address`, `--root`, their variables, the configuration) is taken; nothing is searched then.
//! - A command that is not about Orlop's own store alone says on standard error which other one it uses, and why.

pub(crate) mod places;
pub(crate) mod probe;

use std::fmt;
use std::path::{Path, PathBuf};

use orlop_graph::model::Collector;
use places::{Place, Product, places};
use probe::{Found, Server, State};

use crate::error::{Class, CliError, Result};
use crate::settings::Settings;

/// The store that a command speaks to.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    /// Whose it is.
    pub(crate) product: Product,
    /// Where it is reached.
    pub(crate) at: At,
    /// Its server's version, where it is not Orlop's.
    pub(crate) version: Option<String>,
    /// Where its files are, as this process reaches them; none if nobody says.
    pub(crate) root: Option<PathBuf>,
    /// The namespace of calls.
    pub(crate) namespace: String,
    /// Why it is this one.
    pub(crate) why: String,
}

/// Where a store is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// Over a server's socket.
    Socket(PathBuf),
    /// In this process: its directory.
    Directory(PathBuf),
}

impl Store {
    /// A store of Orlop's.
    pub(crate) fn own(at: At, namespace: String, why: impl Into<String>) -> Self {
        let root = match &at {
            At::Directory(root) => Some(root.clone()),
            At::Socket(_) => None,
        };
        Self { product: Product::Orlop, at, version: None, root, namespace, why: why.into() }
    }

    /// Which labels its garbage collection knows; of files alone that is not known, and a new one is assumed.
    pub(crate) fn collector(&self) -> Collector {
        self.version.as_deref().map_or_else(Collector::default, Collector::of_version)
    }

    /// Whether it is Orlop's, with `orlop.v1`.
    pub(crate) fn is_own(&self) -> bool {
        self.product == Product::Orlop
    }
}

impl fmt::Display for Store {
    /// `MicroK8s' containerd 1.7.22 at /var/snap/microk8s/common/run/containerd.sock`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.product.name())?;
        if let Some(version) = &self.version {
            write!(f, " {}", version.trim_start_matches('v'))?;
        }
        let (At::Socket(path) | At::Directory(path)) = &self.at;
        write!(f, " at {}", path.display())
    }
}

/// Which stores a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// None but Orlop's own, which is made if it is not there: it brings images in.
    Make,
    /// None but Orlop's own: it needs `orlop.v1`.
    Own,
    /// Orlop's own unless another's address is given: containerd's calls are enough, and it changes something.
    Given,
    /// Whatever is there: it looks, or deletes what a plan has shown.
    Any,
    /// As [`Reach::Any`]; it goes on, and hears what other processes do meanwhile.
    Live,
}

/// Whose the server at an address is.
pub(crate) fn product_of(server: &Server, address: &Path, settings: &Settings) -> Product {
    if server.is_orlop() {
        return Product::Orlop;
    }
    let host = settings.around.host.as_deref();
    let here = identity(address);
    let known = places(&settings.around).into_iter().find(|place| {
        let socket = places::at_host(host, &place.socket);
        socket == address || (here.is_some() && identity(&socket) == here)
    });
    let product = known.map_or(Product::Containerd, |place| place.product);
    server.root.as_deref().map_or(product, |root| places::product_at(product, root))
}

/// What is at an address that was given.
pub(crate) async fn given(address: &Path, settings: &Settings) -> Found {
    let place = Place { product: Product::Containerd, socket: address.to_owned(), root: None };
    let found = probe::look(place, None).await;
    match &found.state {
        State::Running(server) => Found { product: product_of(server, address, settings), ..found },
        _ => found,
    }
}

/// The first server that answers, in the order of the places.
///
/// # Errors
/// What was looked at and found, if none does.
pub(crate) async fn first(settings: &Settings) -> Result<(Found, Server)> {
    let host = settings.around.host.as_deref();
    let mut looked = Vec::new();
    for place in places(&settings.around) {
        let found = probe::look(place, host).await;
        if let State::Running(server) = &found.state {
            let server = server.clone();
            return Ok((found, server));
        }
        looked.push(found);
    }
    Err(nothing(settings, &looked))
}

/// Every store at a well-known place, running or not, in the order in which they are looked for; one that has several
/// sockets once. `own` comes first: Orlop's own, wherever that is.
pub(crate) async fn all(settings: &Settings, own: Place) -> Vec<Found> {
    let host = settings.around.host.as_deref();
    // Where its own is, is said as this process sees it.
    let looks = places(&settings.around).into_iter().map(|place| probe::look(place, host));
    let (own, known) = futures::join!(probe::look(own, None), futures::future::join_all(looks));
    let mut found: Vec<Found> = Vec::new();
    for one in std::iter::once(own).chain(known) {
        let twice = found.iter().any(|other| is_same(other, &one));
        if !twice && !matches!(one.state, State::Absent) {
            found.push(one);
        }
    }
    found
}

/// Whether two places have one server, one socket, or one root.
fn is_same(one: &Found, other: &Found) -> bool {
    let running = |f: &Found| matches!(f.state, State::Running(_));
    let only_files = |f: &Found| matches!(f.state, State::Files);
    let same_socket =
        one.socket == other.socket || identity(&one.socket).is_some_and(|id| Some(id) == identity(&other.socket));
    let same_root = one.root.is_some() && one.root == other.root;
    if running(one) && running(other) {
        same_socket
    } else {
        same_root || (same_socket && !only_files(one) && !only_files(other))
    }
}

/// Whose root a directory is, if it is a containerd's and no store of Orlop's.
pub(crate) fn foreign_root(directory: &Path) -> Option<Product> {
    let is_foreign = is_root(Product::Containerd, directory) && !is_root(Product::Orlop, directory);
    is_foreign.then(|| places::product_at(Product::Containerd, directory))
}

/// Whether a directory is a product's root, as far as this user may see.
pub(crate) fn is_root(product: Product, directory: &Path) -> bool {
    directory.join(product.database()).exists() || (product == Product::Orlop && has_lost_its_database(directory))
}

/// Whether a directory is an Orlop root whose database is gone: opening it says so, and making another one beside what is
/// there would forget that.
fn has_lost_its_database(directory: &Path) -> bool {
    use orlop_metadata::Store;
    Store::lost(directory).is_some() && Store::check_root(directory).is_ok()
}

/// Whether an Orlop root has no blob: made by a pull that failed, say. What cannot be read counts as held.
pub(crate) fn holds_nothing(root: &Path) -> bool {
    let algorithms = match std::fs::read_dir(root.join("content/blobs")) {
        Ok(algorithms) => algorithms,
        Err(error) => return error.kind() == std::io::ErrorKind::NotFound,
    };
    algorithms.flatten().all(|entry| std::fs::read_dir(entry.path()).is_ok_and(|mut blobs| blobs.next().is_none()))
}

/// What a socket is, by whatever name.
fn identity(socket: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(socket).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn nothing(settings: &Settings, looked: &[Found]) -> CliError {
    let mut lines = vec![(settings.root.clone(), "Orlop", "no store".to_owned())];
    let mut class = Class::NotFound;
    for found in looked {
        let (path, what) = match &found.state {
            State::NotPermitted(why) => {
                class = Class::NotPermitted;
                (&found.socket, format!("not permitted ({why})"))
            }
            State::NoAnswer(why) => {
                if class == Class::NotFound {
                    class = Class::Unavailable;
                }
                (&found.socket, format!("nobody answers ({why})"))
            }
            State::Files => (found.root.as_ref().unwrap_or(&found.socket), "files only, no server".to_owned()),
            State::Absent | State::Running(_) => (&found.socket, "not there".to_owned()),
        };
        if !lines.iter().any(|(seen, _, _)| seen == path) {
            lines.push((path.clone(), found.product.name(), what));
        }
    }
    let listed: String =
        lines.iter().map(|(path, name, what)| format!("\n  {}: {name}: {what}", path.display())).collect();
    CliError::new(class, format!("no image store was found; looked at{listed}")).hint(match class {
        Class::NotPermitted => {
            "try as root (sudo); or name one: --address SOCKET, --root DIR; `orlop pull` makes Orlop's own"
        }
        Class::Unavailable => "start it; or name another: --address SOCKET, --root DIR",
        _ => "`orlop pull` makes Orlop's own; or name one: --address SOCKET, --root DIR",
    })
}
