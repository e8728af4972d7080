//! The command line beside a daemon: it joins the one that serves the root, and never opens the root beside it.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common;
use crate::common::{Done, Orlop, binary};
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use rustix::fs::FlockOperation;
use rustix::process::Signal;

fn archive_of(store: &Orlop, name: &str) -> String {
    let layer = Layer::new([Entry::file("small", "small")]).packed(Compression::Gzip);
    let file = store.path(&format!("{}.tar", name.replace(['/', ':'], "_")));
    std::fs::write(&file, archive::oci_archive(&[(name, &Content::image(&Image::host().layer(layer)))])).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Whether a process has the database of a root open.
fn has_open(pid: u32, root: &Path) -> bool {
    let wanted = root.join("meta.db").canonicalize().unwrap();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok()).any(|path| path == wanted)
}

#[test]
fn a_command_joins_the_daemon_that_serves_its_root() {
    let store = Orlop::new();
    let mut served = store.serve(&[]);
    assert!(has_open(served.process().id(), store.root().as_path()));
    // What a stopped daemon does not answer, an embedded store would.
    served.process().signal(Signal::STOP);
    let mut waiting = store.command(["images", "-o", "name"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let connected = || {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let path = served.socket();
        sockets.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count() > 1
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !connected() {
        assert!(waiting.try_wait().unwrap().is_none(), "it did without the daemon");
        assert!(std::time::Instant::now() < deadline, "it never asked the daemon");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!has_open(waiting.id(), &store.root()));
    served.process().signal(Signal::CONT);
    assert!(waiting.wait().unwrap().success());
}

#[test]
fn local_files_move_through_the_socket() {
    if !common::is_root("local_files_move_through_the_socket") {
        return;
    }
    let store = Orlop::new();
    let served = store.serve(&[]);
    let name = "docker.io/library/small:1";
    store.ok(["import", &archive_of(&store, name)]);
    let done = store.fed(&["import", "-"], Path::new(&archive_of(&store, "docker.io/library/fed:1")));
    assert_eq!(done.code, 0, "{}", done.err);
    // Paths mean what they mean to the caller, wherever the daemon stands.
    let mut export = store.command(["export", name, "-O", "out.tar"]);
    export.current_dir(store.path(""));
    assert!(export.output().unwrap().status.success());
    let other = Orlop::new();
    other.ok(["import", store.path("out.tar").to_str().unwrap()]);
    assert!(other.records().contains(&name.to_owned()));

    let dir = store.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    store.ok(["mount", "--rw", name, dir.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(dir.join("small")).unwrap(), "small");
    std::fs::write(dir.join("new"), "new").unwrap();
    store.ok(["umount", dir.to_str().unwrap()]);
    assert!(!dir.join("small").exists());
    drop(served);
    store.is_sound();
}

#[test]
fn a_root_has_one_daemon() {
    let store = Orlop::new();
    let served = store.serve(&[]);
    let done = store.run(["serve", "--socket", store.path("other.sock").to_str().unwrap()]);
    assert_eq!(done.code, 4, "{}", done.err);
    assert!(done.err.contains(served.socket().to_str().unwrap()), "{}", done.err);
    assert!(!store.path("other.sock").exists());
}

#[test]
fn without_the_daemon_the_store_is_opened_again() {
    let store = Orlop::new();
    let mut served = store.serve(&[]);
    store.ok(["import", "--no-unpack", &archive_of(&store, "docker.io/library/small:1")]);
    let records = store.records();
    served.process().kill();
    assert_eq!(store.records(), records);
    store.is_sound();
}

#[test]
fn what_was_said_more_directly_decides_which_store_is_meant() {
    let (served, plain) = (Orlop::new(), Orlop::new());
    served.ok(["import", "--no-unpack", &archive_of(&served, "docker.io/library/served:1")]);
    plain.ok(["import", "--no-unpack", &archive_of(&plain, "docker.io/library/plain:1")]);
    let daemon = served.serve(&[]);
    let (socket, root) = (daemon.socket(), plain.root());
    let names = |options: &[&str], variables: &[(&str, &Path)]| {
        let mut command = binary();
        command.args(options).args(["images", "-o", "name"]).envs(variables.iter().copied());
        let done = Done::of(&command.output().unwrap());
        assert_eq!(done.code, 0, "{options:?} {variables:?}: {}", done.err);
        if done.out.contains("served") { "served" } else { "plain" }
    };
    let (socket_text, root_text) = (socket.to_str().unwrap(), root.to_str().unwrap());
    let url = format!("unix://{socket_text}");
    assert_eq!(names(&["--address", &url], &[("ORLOP_ROOT", &root)]), "served");
    assert_eq!(names(&["--address", socket_text, "--root", root_text], &[]), "served");
    assert_eq!(names(&["--root", root_text], &[("ORLOP_ADDRESS", &socket)]), "plain");
    assert_eq!(names(&[], &[("ORLOP_ADDRESS", &socket), ("ORLOP_ROOT", &root)]), "served");
    assert_eq!(names(&[], &[("CONTAINERD_ADDRESS", &socket)]), "served");
    assert_eq!(names(&[], &[("CONTAINERD_ADDRESS", &socket), ("ORLOP_ROOT", &root)]), "plain");
}

#[test]
fn a_daemon_at_the_usual_place_is_joined_unless_a_root_is_asked_for() {
    let (served, plain) = (Orlop::new(), Orlop::new());
    served.ok(["import", "--no-unpack", &archive_of(&served, "docker.io/library/served:1")]);
    let daemon = served.serve(&[]);
    let file = served.path("config.toml");
    std::fs::write(&file, format!("[serve]\nsocket = {:?}\n", daemon.socket())).unwrap();
    let mut command = binary();
    // Nothing but the place of the socket is said; the data of whoever runs this is not looked at.
    command.env("XDG_DATA_HOME", served.path("data")).env("ORLOP_CONFIG", &file).args(["images", "-o", "name"]);
    let done = Done::of(&command.output().unwrap());
    assert!(done.code == 0 && done.out.contains("served"), "{} {}", done.out, done.err);
    let done = plain.run(["--config", file.to_str().unwrap(), "images", "-o", "name"]);
    assert_eq!((done.code, done.out.as_str()), (0, ""), "{}", done.err);
}

#[test]
fn commands_and_a_daemon_that_comes_and_goes_share_a_root() {
    const COMMANDS: usize = 5;
    let store = Orlop::new();
    let name = "docker.io/library/small:1";
    store.ok(["import", "--no-unpack", &archive_of(&store, name)]);
    std::thread::scope(|scope| {
        let working: Vec<_> = (0..3)
            .map(|worker| {
                let store = &store;
                scope.spawn(move || {
                    let mut done = Vec::new();
                    for n in 0..COMMANDS {
                        let tag = format!("docker.io/library/w{worker}:{n}");
                        let result = store.run(["tag", name, &tag]);
                        // A call that was cut when the daemon ended is told as what it is; every other succeeds.
                        assert!(result.code == 0 || result.code == 8, "{}", result.err);
                        if result.code == 0 {
                            done.push(tag);
                        }
                    }
                    done
                })
            })
            .collect();
        while !working.iter().all(|worker| worker.is_finished()) {
            let mut served = store.serve(&[]);
            served.process().signal(Signal::TERM);
            assert_eq!(served.process().wait().code(), Some(0), "{}", served.log());
        }
        let records = store.records();
        for tag in working.into_iter().flat_map(|worker| worker.join().unwrap()) {
            assert!(records.contains(&tag), "{tag} was acknowledged: {records:?}");
        }
    });
    store.is_sound();
}

/// Takes connections and drops each when it has asked for something, as they end whose daemon goes.
fn drop_connections(listener: &UnixListener, count: usize) {
    const PREFACE_BYTES: u64 = 24;
    const HEADERS: u8 = 1;
    for _ in 0..count {
        let connection = listener.accept().unwrap().0;
        let skip = |bytes: u64| std::io::copy(&mut (&connection).take(bytes), &mut std::io::sink()).unwrap();
        skip(PREFACE_BYTES);
        let mut frame = [0; 9];
        while frame[3] != HEADERS {
            (&connection).read_exact(&mut frame).unwrap();
            skip(u64::from(u32::from_be_bytes([0, frame[0], frame[1], frame[2]])));
        }
    }
}

#[test]
fn a_connection_that_breaks_is_told_as_such() {
    let store = Orlop::new();
    let socket = store.path("gone.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| drop_connections(&listener, 1));
        let mut command = binary();
        command.arg("--address").arg(&socket).args(["images"]);
        let done = Done::of(&command.output().unwrap());
        assert_eq!(done.code, 8, "{}", done.err);
        assert!(
            done.err.contains("the connection to the server broke: ") && done.err.contains("hint:"),
            "{}",
            done.err
        );
    });
}

#[test]
fn a_daemon_that_ends_before_it_takes_the_connection_is_waited_for() {
    let store = Orlop::new();
    let name = "docker.io/library/small:1";
    store.ok(["import", "--no-unpack", &archive_of(&store, name)]);
    let socket = store.path("ending.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // What a daemon holds that serves the root, and its socket while it ends.
    let lock = store.root().join("daemon.lock");
    std::fs::write(&lock, format!(r#"{{"pid":{},"socket":{:?}}}"#, std::process::id(), socket)).unwrap();
    let held = std::fs::File::open(&lock).unwrap();
    rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        // Without three connections the root stays held, and the command does not end.
        scope.spawn(move || {
            drop_connections(&listener, 3);
            drop(listener);
            drop(held);
        });
        let done = store.run(["tag", name, "docker.io/library/small:2"]);
        assert_eq!(done.code, 0, "{}", done.err);
    });
    assert!(store.records().contains(&"docker.io/library/small:2".to_owned()));
}

#[test]
fn a_server_that_is_not_orlop_lacks_what_is_orlops_own() {
    if !common::is_root("a_server_that_is_not_orlop_lacks_what_is_orlops_own") {
        return;
    }
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &Options::default());
        let mut command = binary();
        command.arg("--address").arg(containerd.socket()).args(["inspect", "alpine"]);
        let done = Done::of(&command.output().unwrap());
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains("orlop.v1") && done.err.contains("orlop explain alpine"), "{}", done.err);
        // What looks needs containerd's own calls alone.
        let mut command = binary();
        command.arg("--address").arg(containerd.socket()).arg("df");
        assert_eq!(Done::of(&command.output().unwrap()).code, 0);
        // Plumbing needs nothing but containerd's own calls.
        let mut command = binary();
        command.arg("--address").arg(containerd.socket()).args(["namespaces", "ls"]);
        assert_eq!(Done::of(&command.output().unwrap()).code, 0);
    }
}
