//! Finding the store that is meant: real containerds at the places of well-known products, below a directory that stands
//! for a host's file system.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::common;
use crate::common::{Done, Orlop, binary, publish};
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use serde_json::Value;

const MICROK8S: &str = "var/snap/microk8s/common/run/containerd.sock";
const K3S: &str = "run/k3s/containerd/containerd.sock";
const CONTAINERD: &str = "run/containerd/containerd.sock";
const DOCKER: &str = "run/docker/containerd/containerd.sock";
const ROOTLESS: &str = "run/user/1234/containerd/containerd.sock";

/// What a host's file system is mounted at.
struct Host {
    // A socket's path must be short.
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("host").tempdir_in("/tmp").unwrap();
        Self { dir }
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside)
    }

    /// A place for something, with its directory.
    fn place(&self, inside: &str) -> PathBuf {
        let path = self.path(inside);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// Lets a containerd be reached at a product's place: the same socket under a further name.
    fn with(self, inside: &str, containerd: &Containerd) -> Self {
        std::fs::hard_link(containerd.socket(), self.place(inside)).unwrap();
        self
    }

    fn run(&self, args: &[&str]) -> Done {
        let mut command = binary();
        command.arg("--host").arg(self.dir.path()).args(args);
        Done::of(&command.output().expect("orlop starts"))
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Done {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{args:?}\n{}\n{}", done.out, done.err);
        done
    }

    #[track_caller]
    fn stores(&self) -> Vec<Value> {
        let done = self.ok(&["stores", "-o", "json"]);
        let document: Value = serde_json::from_str(&done.out).unwrap();
        assert_eq!(document["schema"], "orlop.stores/v1");
        document["stores"].as_array().unwrap().clone()
    }

    /// The same run by a user who may do nothing.
    fn run_as_nobody(&self, args: &[&str]) -> Done {
        let mut command = self.nobody();
        command.arg("--host").arg(self.dir.path()).args(args);
        Done::of(&command.output().expect("orlop starts"))
    }

    /// The program for a user who may do nothing.
    fn nobody(&self) -> std::process::Command {
        use std::os::unix::process::CommandExt;
        let program = self.path("orlop");
        if !program.exists() {
            publish(&program);
        }
        let mut command = std::process::Command::new(program);
        for said in
            ["ORLOP_ROOT", "ORLOP_ADDRESS", "ORLOP_CONFIG", "ORLOP_HOST", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE"]
        {
            command.env_remove(said);
        }
        command.env("HOME", "/nonexistent").uid(65534).gid(65534).current_dir("/");
        command
    }
}

fn generations() -> Vec<Programs> {
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

fn start(programs: &Programs) -> Containerd {
    Containerd::start(programs, &Options::default())
}

/// Imports a small image into namespaces of a containerd; returns its manifest's digest.
fn import(containerd: &Containerd, namespaces: &[&str]) -> String {
    let layer = Layer::new([Entry::file("small", "small")]).packed(Compression::Gzip);
    let content = Content::image(&Image::host().layer(layer));
    let file = containerd.root().join("small.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/small:1", &content)])).unwrap();
    for namespace in namespaces {
        containerd.import(namespace, &file, "native").ok();
    }
    content.root.digest.to_string()
}

#[test]
fn a_store_that_is_found_is_named_with_the_reason() {
    if !common::is_root("a_store_that_is_found_is_named_with_the_reason") {
        return;
    }
    for programs in generations() {
        let containerd = start(&programs);
        let manifest = import(&containerd, &["k8s.io"]);
        let host = Host::new().with(MICROK8S, &containerd);
        let done = host.ok(&["content", "ls", "-o", "name"]);
        assert!(done.out.contains(&manifest), "{}", done.out);
        let version = programs.version();
        let number = version.split_whitespace().map(|w| w.trim_start_matches('v')).find(|w| w.starts_with(['1', '2']));
        let expected = format!(
            "using MicroK8s' containerd {} at {}, namespace k8s.io (no Orlop store below {})",
            number.unwrap(),
            host.path(MICROK8S).display(),
            host.dir.path().display()
        );
        assert_eq!(done.err.trim_end(), expected);
        let done = host.ok(&["--quiet", "content", "ls", "-o", "name"]);
        assert!(done.out.contains(&manifest) && done.err.is_empty(), "{}", done.err);
        assert!(!host.path("var/lib/orlop").exists(), "looking makes no store");
    }
}

#[test]
fn the_namespace_follows_the_product() {
    if !common::is_root("the_namespace_follows_the_product") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let containerd = start(&programs);
    let manifest = import(&containerd, &["moby", "default"]);
    let namespace = |host: &Host| {
        let done = host.ok(&["content", "ls", "-o", "name"]);
        assert!(done.out.contains(&manifest), "{}{}", done.out, done.err);
        done.err.split_once("namespace ").unwrap().1.split_once(' ').unwrap().0.to_owned()
    };
    assert_eq!(namespace(&Host::new().with(DOCKER, &containerd)), "moby");
    // A containerd that several products share: the first of k8s.io, moby, default that holds something.
    let shared = Host::new().with(CONTAINERD, &containerd);
    containerd.ctr("default", &["namespaces", "create", "k8s.io"]).ok();
    assert_eq!(namespace(&shared), "moby");
    import(&containerd, &["k8s.io"]);
    assert_eq!(namespace(&shared), "k8s.io");
    assert_eq!(namespace(&Host::new().with(ROOTLESS, &containerd)), "default");
    // What is asked for, wins; and an address that is a product's means the product.
    let done = shared.ok(&["-n", "other", "content", "ls", "-o", "name"]);
    assert!(done.out.is_empty() && done.err.contains("namespace other"), "{}{}", done.out, done.err);
    let docker = Host::new().with(DOCKER, &containerd);
    let socket = docker.path(DOCKER);
    let done = docker.ok(&["--address", socket.to_str().unwrap(), "content", "ls", "-o", "name"]);
    assert!(done.err.contains("Docker's containerd") && done.err.contains("namespace moby"), "{}", done.err);
}

#[test]
fn orlops_own_store_comes_first_and_silently() {
    if !common::is_root("orlops_own_store_comes_first_and_silently") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let (containerd, other) = (start(&programs), start(&programs));
    let host = Host::new().with(CONTAINERD, &containerd).with(K3S, &other);
    let used = |host: &Host| {
        let done = host.ok(&["namespaces", "ls"]);
        let rows = host.stores();
        let used: Vec<_> = rows.iter().filter(|row| row["used"] == true).collect();
        assert_eq!(used.len(), 1, "{rows:?}");
        // What `stores` announces is what happens.
        let said = used[0]["address"].as_str().is_some_and(|address| done.err.contains(address));
        assert_eq!(said, used[0]["product"] != "orlop", "{} {rows:?}", done.err);
        used[0]["product"].as_str().unwrap().to_owned()
    };
    assert_eq!(used(&host), "k3s");
    // What brings images in makes Orlop's own store and asks nobody else.
    let store = Orlop::new();
    let file = store.path("image.tar");
    let content = Content::image(&Image::host().layer(Layer::new([Entry::file("a", "a")]).packed(Compression::Gzip)));
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/own:1", &content)])).unwrap();
    let done = host.ok(&["import", "--no-unpack", file.to_str().unwrap()]);
    assert!(!done.err.contains("using"), "{}", done.err);
    assert!(host.path("var/lib/orlop/meta.db").exists());
    assert_eq!(used(&host), "orlop");
    let done = host.ok(&["images", "-o", "name"]);
    assert!(done.out.contains("own:1") && done.err.is_empty(), "{}{}", done.out, done.err);
    // Its daemon, as the host sees the socket.
    let mut serve = binary();
    serve.arg("--host").arg(host.dir.path());
    let served = orlop_testkit::served::Served::start(serve, &host.path("var/lib/orlop"), &[]);
    let row = host.stores().remove(0);
    assert_eq!((&row["product"], &row["state"], &row["used"]), (&"orlop".into(), &"running".into(), &true.into()));
    drop(served);
}

#[test]
fn a_command_for_orlops_own_store_refuses_another() {
    if !common::is_root("a_command_for_orlops_own_store_refuses_another") {
        return;
    }
    for programs in generations() {
        let containerd = start(&programs);
        let mut command = binary();
        command.arg("--address").arg(containerd.socket()).args(["pull", "docker.io/library/alpine"]);
        let done = Done::of(&command.output().unwrap());
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains("Orlop's own store only") && done.err.contains("containerd "), "{}", done.err);
        assert!(done.err.contains("orlop stores"), "{}", done.err);
    }
}

#[test]
fn stores_says_what_is_there_and_what_to_do() {
    if !common::is_root("stores_says_what_is_there_and_what_to_do") {
        return;
    }
    for programs in generations() {
        let containerd = start(&programs);
        import(&containerd, &["k8s.io", "default"]);
        containerd.ctr("k8s.io", &["images", "tag", "docker.io/library/small:1", "docker.io/library/small:2"]).ok();
        let host = Host::new().with(CONTAINERD, &containerd).with(DOCKER, &containerd);
        // A server that has ended, one that never answers, one that speaks something else.
        drop(UnixListener::bind(host.place(K3S)).unwrap());
        let silent = UnixListener::bind(host.place("run/k0s/containerd.sock")).unwrap();
        let other = UnixListener::bind(host.place(MICROK8S)).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut connection, _)) = other.accept() {
                let _ = std::io::Write::write_all(&mut connection, b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        // Only the files of rke2, as they are left when it stops; moved to another disk by a link of the host's own.
        let database = "io.containerd.metadata.v1.bolt/meta.db";
        let left = host.place(&format!("disk/rke2/agent/containerd/{database}"));
        std::fs::copy(containerd.root().join(database), left).unwrap();
        std::os::unix::fs::symlink("/disk/rke2", host.place("var/lib/rancher/rke2")).unwrap();

        let rows = host.stores();
        let found: Vec<_> =
            rows.iter().map(|row| (row["product"].as_str().unwrap(), row["state"].as_str().unwrap())).collect();
        let expected = [
            ("microk8s", "no-answer"),
            ("k3s", "no-answer"),
            ("rke2", "files"),
            ("k0s", "no-answer"),
            ("containerd", "running"),
        ];
        assert_eq!(found, expected, "Docker's socket is containerd's: one server, one row");
        let server = &rows[4];
        assert_eq!(server["address"], host.path(CONTAINERD).to_str().unwrap());
        assert_eq!(
            server["root"].as_str().unwrap(),
            host.dir.path().join(containerd.root().strip_prefix("/").unwrap()).to_str().unwrap()
        );
        let images: Vec<_> =
            server["namespaces"].as_array().unwrap().iter().map(|n| (&n["name"], &n["images"])).collect();
        assert_eq!(images, [(&"default".into(), &1.into()), (&"k8s.io".into(), &2.into())]);
        assert_eq!((&server["namespace"], &server["used"]), (&"k8s.io".into(), &true.into()));
        assert_eq!(rows[2]["root"], host.path("disk/rke2/agent/containerd").to_str().unwrap());
        for row in &rows[..4] {
            assert!(row["problem"].is_string() && row["advice"].is_string() && row["used"] == false, "{row}");
        }
        assert!(rows[3]["problem"].as_str().unwrap().contains("not answered"), "{}", rows[3]);

        drop(silent);
        let table = host.ok(&["stores"]).out;
        let line = table.lines().find(|line| line.starts_with('*')).unwrap();
        assert!(line.contains("running") && line.contains("k8s.io (2)"), "{table}");
        assert!(table.contains("--root") && table.contains("files only"), "{table}");
    }
}

#[test]
fn what_may_not_be_opened_is_told_with_what_to_do() {
    if !common::is_root("what_may_not_be_opened_is_told_with_what_to_do") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let containerd = start(&programs);
    let host = Host::new().with(CONTAINERD, &containerd);
    std::fs::set_permissions(host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(host.path(CONTAINERD), std::fs::Permissions::from_mode(0o600)).unwrap();
    let done = host.run_as_nobody(&["stores", "-o", "json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let document: Value = serde_json::from_str(&done.out).unwrap();
    let row = &document["stores"][0];
    assert_eq!((&row["product"], &row["state"]), (&"containerd".into(), &"not-permitted".into()));
    assert!(row["advice"].as_str().unwrap().contains("root"), "{row}");
    let done = host.run_as_nobody(&["images"]);
    assert_eq!(done.code, 7, "{}", done.err);
    assert!(done.err.contains(CONTAINERD) && done.err.contains("sudo"), "{}", done.err);
}

#[test]
fn an_address_at_which_nobody_speaks_or_that_is_not_open_to_this_user_holds_nobody_up() {
    let host = Host::new();
    let socket = host.place("silent.sock");
    let silent = UnixListener::bind(&socket).unwrap();
    let mut command = binary();
    let done = Done::of(&command.arg("--address").arg(&socket).arg("images").output().unwrap());
    assert_eq!(done.code, 8, "{}", done.err);
    assert!(done.err.contains("nobody has answered within") && done.err.contains("hint:"), "{}", done.err);
    drop(silent);
    if common::is_root("an_address_at_which_nobody_speaks_or_that_is_not_open_to_this_user_holds_nobody_up") {
        std::fs::set_permissions(host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).unwrap();
        let done = host.run_as_nobody(&["--address", socket.to_str().unwrap(), "images"]);
        assert_eq!(done.code, 7, "{}", done.err);
        assert!(done.err.contains("sudo") && !done.err.contains("is the daemon running"), "{}", done.err);
    }
}

#[test]
fn a_user_finds_the_containerd_of_his_own_session() {
    if !common::is_root("a_user_finds_the_containerd_of_his_own_session") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let containerd = start(&programs);
    let manifest = import(&containerd, &["default"]);
    let session = Host::new().with("containerd/containerd.sock", &containerd);
    std::fs::set_permissions(session.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(containerd.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut command = session.nobody();
    command.env("XDG_RUNTIME_DIR", session.dir.path()).env("XDG_DATA_HOME", session.path("data"));
    let done = Done::of(&command.args(["content", "ls", "-o", "name"]).output().unwrap());
    assert!(done.code == 0 && done.out.contains(&manifest), "{}{}", done.out, done.err);
    let expected = "namespace default (no Orlop store on this machine)";
    assert!(done.err.starts_with("using rootless containerd 1.") && done.err.contains(expected), "{}", done.err);
    assert!(!session.path("data").exists());
}

#[test]
fn where_nothing_is_the_places_are_listed_and_nothing_is_made() {
    let host = Host::new();
    let done = host.run(&["images"]);
    assert_eq!(done.code, 3, "{}", done.err);
    for place in [MICROK8S, K3S, CONTAINERD, DOCKER, "var/lib/orlop"] {
        assert!(done.err.contains(host.path(place).to_str().unwrap()), "{place}: {}", done.err);
    }
    assert!(done.err.contains("orlop pull"), "{}", done.err);
    drop(UnixListener::bind(host.place(CONTAINERD)).unwrap());
    let done = host.run(&["images"]);
    assert!(done.code == 8 && done.err.contains("nobody answers"), "{}", done.err);
    assert!(!host.path("var/lib").exists());
    assert!(host.stores().iter().all(|row| row["used"] == false));
    let done = Done::of(&binary().args(["--host", "/nonexistent", "images"]).output().unwrap());
    assert!(done.code == 2 && done.err.contains("/nonexistent"), "{}", done.err);
}

#[test]
fn what_was_said_is_not_searched() {
    if !common::is_root("what_was_said_is_not_searched") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let containerd = start(&programs);
    let host = Host::new().with(MICROK8S, &containerd);
    let root = host.path("own");
    let done = host.ok(&["--root", root.to_str().unwrap(), "images"]);
    assert!(done.err.is_empty() && Path::exists(&root), "{}", done.err);
    let done = host.run(&["--address", host.path("gone.sock").to_str().unwrap(), "images"]);
    assert!(done.code == 8 && done.err.contains("gone.sock"), "{}", done.err);
}

/// A containerd's root was taken for Orlop's, and the advice was to start a daemon there.
#[test]
fn a_containerds_root_is_said_to_be_one_and_how_to_look_into_it() {
    if !common::is_root("a_containerds_root_is_said_to_be_one_and_how_to_look_into_it") {
        return;
    }
    for programs in generations() {
        let mut containerd = start(&programs);
        import(&containerd, &["k8s.io"]);
        let root = containerd.root();
        let orlop = |args: &[&str]| {
            let mut command = binary();
            command.arg("--root").arg(&root).args(args);
            Done::of(&command.output().expect("orlop starts"))
        };
        // The same while its server runs: what --root names are the files.
        for is_running in [true, false] {
            if !is_running {
                containerd.stop(rustix::process::Signal::TERM);
            }
            let done = orlop(&["stores", "-o", "json"]);
            let document: Value = serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}", done.err));
            let row = &document["stores"][0];
            assert_eq!(
                (&row["product"], &row["state"], &row["used"]),
                (&"containerd".into(), &"files".into(), &true.into())
            );
            assert_eq!(row["root"], root.to_str().unwrap());
            let advice = format!("orlop --root {} images", root.display());
            assert!(row["advice"].as_str().unwrap().contains(&advice), "{row:#}");
            let text = orlop(&["stores"]).out;
            assert!(text.contains("is a containerd's root") && text.contains(&advice), "{text}");
            assert!(!text.contains("orlop serve") && !text.contains("Orlop's own"), "{text}");
            // What is advised works.
            let done = orlop(&["images", "-o", "name"]);
            assert_eq!((done.code, done.out.trim()), (0, "docker.io/library/small:1"), "{}", done.err);
        }
    }
}

/// An empty store, as `orlop gc --root` makes it: it hid what the machine's containerd has.
#[test]
fn an_empty_store_of_orlops_does_not_hide_a_containerd_that_answers() {
    if !common::is_root("an_empty_store_of_orlops_does_not_hide_a_containerd_that_answers") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let containerd = start(&programs);
    import(&containerd, &["k8s.io"]);
    let host = Host::new().with(MICROK8S, &containerd);
    let own = host.place("var/lib/orlop/meta.db").parent().unwrap().to_owned();
    let made = Done::of(&binary().arg("--root").arg(&own).arg("gc").output().unwrap());
    assert_eq!(made.code, 0, "{}", made.err);
    let done = host.ok(&["images", "-o", "name"]);
    assert_eq!(done.out, "docker.io/library/small:1\n");
    assert!(done.err.contains("Orlop's own store at") && done.err.contains("is empty"), "{}", done.err);
}
