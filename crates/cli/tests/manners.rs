//! The daemon's manners towards its surroundings: configuration, service manager, permissions, logs, metrics.

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::time::Duration;

use common::{Done, Orlop, binary};
use orlop_testkit::process::Daemon;
use rustix::process::Signal;

fn written(store: &Orlop, text: &str) -> String {
    let file = store.path("config.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn the_default_configuration_is_right_and_in_effect() {
    let store = Orlop::new();
    let text = store.ok(["config", "default"]);
    let file = written(&store, &text);
    assert!(store.ok(["config", "check", &file]).contains("right"));
    let with = store.ok(["--config", &file, "config", "dump"]);
    let without = store.ok(["--config", "/dev/null", "config", "dump"]);
    assert_eq!(with, without);
    assert!(with.contains(&format!("root = \"{}\"", store.root().display())), "{with}");
    // What is dumped is a configuration again.
    let dumped = written(&store, &with);
    store.ok(["config", "check", &dumped]);
}

#[test]
fn a_wrong_configuration_stops_the_daemon_and_names_the_line() {
    let store = Orlop::new();
    let file = written(&store, "[serve]\nmax_conections = 3\n");
    for args in [vec!["config", "check", &file], vec!["--config", &file, "serve"], vec!["--config", &file, "images"]] {
        let done = store.run(args);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains(&format!("{file}:2: unknown key serve.max_conections")), "{}", done.err);
        assert!(done.err.contains("serve.max_connections"), "{}", done.err);
    }
    assert_eq!(store.run(["config", "check", "/nonexistent"]).code, 3);
}

#[test]
fn the_socket_has_the_mode_and_the_group_that_were_asked_for() {
    let store = Orlop::new();
    let served = store.serve(&[]);
    assert_eq!(std::fs::metadata(served.socket()).unwrap().permissions().mode() & 0o777, 0o660);
    drop(served);
    if common::is_root("the_socket_has_the_mode_and_the_group_that_were_asked_for") {
        let file = written(&store, "[serve]\nsocket_mode = '0600'\ngroup = 'daemon'\n");
        let served = store.serve(&["--config", &file]);
        let metadata = std::fs::metadata(served.socket()).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o600, 1));
        drop(served);
        let served = store.serve(&["--group", "4242"]);
        assert_eq!(std::fs::metadata(served.socket()).unwrap().gid(), 4242);
    }
    let done = store.run(["serve", "--socket", store.path("s").to_str().unwrap(), "--group", "no such group"]);
    assert_eq!(done.code, 3, "{}", done.err);
}

#[test]
fn who_may_not_connect_is_told_so() {
    if !common::is_root("who_may_not_connect_is_told_so") {
        return;
    }
    let store = Orlop::new();
    let served = store.serve(&[]);
    for directory in [served.socket().parent().unwrap(), &store.root(), &store.path("")] {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // The binary may lie where only its owner looks.
    let copy = served.socket().with_file_name("orlop");
    std::fs::copy(env!("CARGO_BIN_EXE_orlop"), &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy);
    command.arg("--root").arg(store.root()).arg("images").env_remove("ORLOP_ADDRESS");
    let done = Done::of(&command.output().unwrap());
    assert_eq!(done.code, 7, "{}", done.err);
    assert!(done.err.contains("ermission") && done.err.contains("group"), "{}", done.err);
}

#[test]
fn a_service_manager_hears_when_it_is_ready_alive_and_ending() {
    let store = Orlop::new();
    let manager = UnixDatagram::bind(store.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let socket = store.path("s");
    let mut command = store.command(["serve", "--socket", socket.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", store.path("notify")).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    let mut daemon = Daemon::start(&mut command, &store.path("log")).unwrap();
    let mut heard = String::new();
    let mut hear = |wanted: &str| {
        let mut buffer = [0; 1024];
        while !heard.contains(wanted) {
            let n = manager.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted}: {e}; heard {heard}"));
            heard.push_str(&String::from_utf8_lossy(&buffer[..n]));
            heard.push('\n');
        }
        heard.clear();
    };
    hear("READY=1");
    assert!(UnixStream::connect(&socket).is_ok(), "ready is ready");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    hear("STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

#[test]
fn sockets_that_are_handed_over_are_served_and_left() {
    let store = Orlop::new();
    let path = store.path("activated");
    let listener = UnixListener::bind(&path).unwrap();
    // File descriptor 3 and LISTEN_PID are those of the shell that becomes the daemon.
    let orlop = env!("CARGO_BIN_EXE_orlop");
    let script = format!(
        "exec 3<&{} ; export LISTEN_PID=$$ ; exec {orlop} --root {} serve",
        listener.as_raw_fd(),
        store.root().display()
    );
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", &script]).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "orlop.socket").env_remove("ORLOP_ROOT");
    let mut daemon = Daemon::start(&mut command, &store.path("log")).unwrap();
    // Whoever knocks before it is there is answered when it is.
    let done = Done::of(&binary().arg("--address").arg(&path).args(["images", "-o", "name"]).output().unwrap());
    assert_eq!(done.code, 0, "{}\n{}", done.err, daemon.log());
    // And commands on the root find it.
    let lock = std::fs::read_to_string(store.root().join("daemon.lock")).unwrap();
    assert!(lock.contains(path.to_str().unwrap()), "{lock}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(path.exists(), "it was not ours to remove");
}

#[test]
fn logs_are_json_if_asked_for_and_say_who_called() {
    let store = Orlop::new();
    let file = written(&store, "[log]\nformat = 'json'\nlevel = 'debug'\n");
    let mut served = store.serve(&["--config", &file]);
    store.ok(["images"]);
    let uid = rustix::process::getuid().as_raw();
    let call = served.process().wait_for(|daemon| {
        let log = daemon.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.into_iter().find(|line| line["span"]["method"] == "/orlop.v1.Orlop/ListImages" && line["code"] == "OK")
    });
    assert_eq!(call["span"]["uid"], uid, "{call}");
    assert_eq!(call["span"]["namespace"], "k8s.io", "{call}");
    assert!(call["span"]["id"].as_str().is_some_and(|id| id.contains('-')), "{call}");
    assert!(
        served.log().lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        "{}",
        served.log()
    );
}

#[test]
fn metrics_are_served_where_they_are_asked_for() {
    let store = Orlop::new();
    let mut served = store.serve(&["--metrics", "127.0.0.1:0"]);
    let address = common::metrics_address(&mut served);
    store.ok(["images"]);
    let get = |path| common::get(&address, path);
    let page = get("/metrics");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for line in
        ["orlop_calls_total{method=\"/orlop.v1.Orlop/ListImages\",code=\"OK\"} 1", "process_resident_memory_bytes "]
    {
        assert!(page.contains(line), "{line}: {page}");
    }
    assert!(get("/").starts_with("HTTP/1.1 404"));
}
