//! The daemon's manners towards its surroundings: configuration, service manager, permissions, logs, metrics.

use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common;
use crate::common::{Done, Orlop, binary};
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use orlop_testkit::process::Daemon;
use rustix::io::FdFlags;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

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
fn a_mistake_in_a_hosts_toml_is_found_before_a_pull_is() {
    let store = Orlop::new();
    let hosts = store.path("certs.d");
    std::fs::create_dir_all(hosts.join("registry.example")).unwrap();
    let (mistaken, good) = (hosts.join("registry.example/hosts.toml"), "server = 'https://mirror.example'\n");
    let file = written(&store, &format!("hosts_dir = '{}'\n", hosts.display()));
    for (text, expected) in [("dial_timeout = '3 seconds'", "expected a duration"), ("server = [", "not valid TOML")] {
        std::fs::write(&mistaken, text).unwrap();
        let done = store.run(["config", "check", &file]);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains(&mistaken.display().to_string()) && done.err.contains(expected), "{}", done.err);
    }
    std::fs::write(&mistaken, good).unwrap();
    store.ok(["config", "check", &file]);
    // One that is not there is no mistake, one that cannot be listed is.
    store.ok(["config", "check", &written(&store, &format!("hosts_dir = '{}-not'\n", hosts.display()))]);
    let done = store.run(["config", "check", &written(&store, &format!("hosts_dir = '{}'\n", mistaken.display()))]);
    assert!(done.code != 0 && done.err.contains(&mistaken.display().to_string()), "{}", done.err);
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
    common::publish(&copy);
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
        let deadline = Instant::now() + Duration::from_secs(60);
        while !heard.contains(wanted) {
            assert!(Instant::now() < deadline, "no {wanted}; heard {heard}");
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

/// A daemon that is handed open sockets as by systemd: from descriptor 3 on, in a process that is meant by its PID. No other
/// program that a test starts meanwhile gets them.
fn activated(store: &Orlop, sockets: &[&dyn AsFd], names: &str) -> Command {
    // Away from the numbers that are to be made.
    let high = sockets.iter().map(|socket| rustix::io::fcntl_dupfd_cloexec(socket.as_fd(), 100).unwrap());
    let high: Vec<OwnedFd> = high.collect();
    let moves = (3..).zip(&high).map(|(at, fd)| format!("exec {at}<&{0} {0}<&- ; ", fd.as_raw_fd()));
    let (orlop, root) = (env!("CARGO_BIN_EXE_orlop"), store.root());
    let run = format!("export LISTEN_PID=$$ ; exec {orlop} --root {} serve", root.display());
    let mut command = Command::new("bash");
    command.arg("-c").arg(moves.collect::<String>() + &run);
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
    command.env_remove("ORLOP_ROOT").env_remove("ORLOP_CONFIG");
    let keep = move || high.iter().try_for_each(|fd| Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?));
    // SAFETY: between fork and exec it makes a system call for each descriptor and nothing else: no memory, no lock.
    unsafe { command.pre_exec(keep) };
    command
}

#[test]
fn sockets_that_are_handed_over_are_served_and_left() {
    let store = Orlop::new();
    let path = store.path("activated");
    let listener = UnixListener::bind(&path).unwrap();
    let mut daemon = Daemon::start(&mut activated(&store, &[&listener], "orlop.socket"), &store.path("log")).unwrap();
    // From here on only the daemon keeps clients waiting.
    drop(listener);
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

#[test]
fn the_group_may_connect_and_the_log_says_who_it_was() {
    if !common::is_root("the_group_may_connect_and_the_log_says_who_it_was") {
        return;
    }
    let store = Orlop::new();
    let file = written(&store, "[serve]\ngroup = '4242'\n[log]\nformat = 'json'\nlevel = 'debug'\n");
    let mut served = store.serve(&["--config", &file]);
    for directory in [served.socket().parent().unwrap(), &store.path("")] {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let program = store.path("orlop");
    common::publish(&program);
    let images = |group: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--groups", group]).arg(&program);
        command.arg("--address").arg(served.socket()).args(["images", "-o", "name"]).env_remove("ORLOP_CONFIG");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
        let child = command.spawn().unwrap();
        let id = child.id();
        (id, Done::of(&child.wait_with_output().unwrap()))
    };
    let (member, done) = images("4242");
    assert_eq!(done.code, 0, "{}", done.err);
    let (_, done) = images("4243");
    assert_eq!(done.code, 7, "{}", done.err);
    let call = served.process().wait_for(|daemon| {
        let log = daemon.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.into_iter().find(|line| line["span"]["uid"] == 65534 && line["code"] == "OK")
    });
    assert_eq!(call["span"]["pid"], member, "{call}");
}

/// Systemd's names tell a socket of metrics from the others, of which any number is served.
#[test]
fn metrics_and_several_sockets_can_be_handed_over() {
    let store = Orlop::new();
    let [one, two] = ["one", "two"].map(|name| UnixListener::bind(store.path(name)).unwrap());
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = metrics.local_addr().unwrap().to_string();
    let mut command = activated(&store, &[&one, &metrics, &two], "one:metrics:two");
    let mut daemon = Daemon::start(&mut command, &store.path("log")).unwrap();
    drop((command, one, two));
    for name in ["one", "two"] {
        let done = Done::of(&binary().arg("--address").arg(store.path(name)).args(["images"]).output().unwrap());
        assert_eq!(done.code, 0, "{name}: {}\n{}", done.err, daemon.log());
    }
    let page = common::get(&address, "/metrics");
    assert!(page.contains("orlop_calls_total{method=\"/orlop.v1.Orlop/ListImages\",code=\"OK\"} 2"), "{page}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());

    // What is neither is refused, by its name.
    let done = Done::of(&activated(&store, &[&metrics], "odd").output().unwrap());
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("odd"), "{}", done.err);
}

#[test]
fn without_an_address_for_metrics_nothing_listens_on_the_network() {
    let listens = |daemon: &Daemon| {
        let tables: String = ["tcp", "tcp6"]
            .map(|name| std::fs::read_to_string(format!("/proc/{}/net/{name}", daemon.id())).unwrap_or_default())
            .concat();
        let sockets = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().filter_map(|entry| {
            let link = std::fs::read_link(entry.ok()?.path()).ok()?.display().to_string();
            Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        });
        let sockets: Vec<String> = sockets.collect();
        let words = tables.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The state of one that listens, and its number.
        words.filter(|words| words.get(3) == Some(&"0A") && sockets.iter().any(|s| words.get(9) == Some(&&**s))).count()
    };
    let store = Orlop::new();
    let mut served = store.serve(&[]);
    assert_eq!(listens(served.process()), 0);
    drop(served);
    let mut served = store.serve(&["--metrics", "127.0.0.1:0"]);
    common::metrics_address(&mut served);
    assert_eq!(listens(served.process()), 1, "it can be seen");
}

#[test]
fn what_is_dumped_is_what_wins() {
    let store = Orlop::new();
    let file = written(&store, "root = '/of/the/file'\n[serve]\nmax_calls = 7\n");
    let dump = |variable: Option<&str>, option: Option<&str>| {
        let mut command = binary();
        if let Some(root) = variable {
            command.env("ORLOP_ROOT", root);
        }
        if let Some(root) = option {
            command.args(["--root", root]);
        }
        let done = Done::of(&command.args(["--config", &file, "config", "dump"]).output().unwrap());
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(done.out.lines().any(|line| line == "max_calls = 7"), "{}", done.out);
        done.out.lines().find(|line| line.starts_with("root = ")).unwrap().to_owned()
    };
    assert_eq!(dump(None, None), "root = \"/of/the/file\"");
    assert_eq!(dump(Some("/of/the/environment"), None), "root = \"/of/the/environment\"");
    assert_eq!(dump(Some("/of/the/environment"), Some("/of/the/option")), "root = \"/of/the/option\"");
    // From the environment, the file's name too.
    let done = Done::of(&binary().env("ORLOP_CONFIG", &file).args(["config", "dump"]).output().unwrap());
    assert!(done.out.contains("root = \"/of/the/file\""), "{}{}", done.out, done.err);
}

/// What the end cuts is parked: the next daemon has it, and the client goes on where it was.
#[test]
fn a_write_that_the_end_cuts_goes_on_with_the_next_daemon() {
    let store = Orlop::new();
    let file = written(&store, "[serve]\nshutdown_seconds = 0\n");
    let mut served = store.serve(&["--config", &file]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (send, mut answers) = write(&served.socket()).await;
        send.send(step(WriteAction::Write, 0, "begun")).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().offset, 5);
        served.process().signal(Signal::TERM);
        let cut = tokio::time::timeout(Duration::from_secs(60), answers.message()).await;
        let status = cut.expect("it is cut").unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    });
    assert_eq!(served.process().wait().code(), Some(0), "{}", served.log());
    assert!(!served.socket().exists());

    let served = store.serve(&["--config", &file]);
    runtime.block_on(async {
        let (send, mut answers) = write(&served.socket()).await;
        send.send(step(WriteAction::Stat, 0, "")).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().offset, 5, "it is as long as it was");
        send.send(step(WriteAction::Commit, 5, " ended")).await.unwrap();
        let digest = answers.message().await.unwrap().unwrap().digest;
        assert_eq!(digest, orlop_oci::Digest::of(b"begun ended").to_string());
    });
}

/// A call to write that is open: its messages and the answers.
async fn write(socket: &Path) -> (mpsc::Sender<WriteContentRequest>, tonic::Streaming<WriteContentResponse>) {
    let channel = orlop_api::channel::unix(socket).await.unwrap();
    let (send, receive) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(receive));
    request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, "test".parse().unwrap());
    (send, ContentClient::new(channel).write(request).await.unwrap().into_inner())
}

fn step(action: WriteAction, offset: i64, data: &'static str) -> WriteContentRequest {
    let (action, reference) = (action.into(), "a write".into());
    WriteContentRequest { action, r#ref: reference, offset, data: data.into(), ..Default::default() }
}
