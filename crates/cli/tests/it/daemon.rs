//! `orlop serve` as a process: containerd's own clients on its socket, and how it begins and ends.

use crate::common::{Done, Orlop, binary};
use orlop_api::containerd::services::content::v1::WriteContentRequest;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use rustix::process::Signal;

fn small() -> Content {
    Content::image(&Image::host().layer(Layer::new([Entry::file("small", "small")]).packed(Compression::Gzip)))
}

fn generations() -> Vec<Programs> {
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

#[test]
fn every_generation_of_ctr_talks_to_it() {
    for programs in generations() {
        let store = Orlop::new();
        let file = store.path("image.tar");
        std::fs::write(&file, archive::oci_archive(&[("docker.io/library/small:1", &small())])).unwrap();
        store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
        let served = store.serve(&[]);
        assert!(served.ctr(&programs, "k8s.io", &["version"]).ok().stdout.contains("+orlop."));
        let listed = served.ctr(&programs, "k8s.io", &["images", "ls", "-q"]).ok().stdout;
        assert_eq!(listed.lines().collect::<Vec<_>>(), store.records(), "{}", programs.version());
        let missing = served.ctr(&programs, "k8s.io", &["images", "label", "nothing", "a=b"]).code(1);
        assert!(missing.stderr.contains("not found"), "{}", missing.stderr);
    }
}

#[test]
fn it_ends_when_it_is_asked_to_and_takes_its_socket_along() {
    for signal in [Signal::TERM, Signal::INT] {
        let store = Orlop::new();
        let mut served = store.serve(&[]);
        let socket = served.socket();
        served.process().signal(signal);
        assert_eq!(served.process().wait().code(), Some(0), "{}", served.log());
        assert!(!socket.exists());
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let store = Orlop::new();
    let mut served = store.serve(&[]);
    let socket = served.socket();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // A write that nobody goes on with keeps the first signal waiting.
    let (_held, _answers) = runtime.block_on(async {
        let channel = orlop_api::channel::unix(&socket).await.unwrap();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let first = WriteContentRequest { r#ref: "held".into(), ..Default::default() };
        send.send(first).await.unwrap();
        let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(receive));
        request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, "test".parse().unwrap());
        let mut answers = ContentClient::new(channel).write(request).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        (send, answers)
    });
    served.process().signal(Signal::TERM);
    served
        .process()
        .wait_for(|daemon| std::os::unix::net::UnixStream::connect(&socket).is_err().then_some(daemon.id()));
    served.process().signal(Signal::TERM);
    assert_eq!(served.process().wait().code(), Some(130), "{}", served.log());
    assert!(!socket.exists());
    store.is_sound();
}

#[test]
fn a_socket_that_is_served_is_not_taken_away() {
    let store = Orlop::new();
    let served = store.serve(&[]);
    let other = Orlop::new();
    let socket = served.socket();
    let mut command = binary();
    command.args(["serve", "--root"]).arg(other.root()).arg("--socket").arg(&socket);
    let done = Done::of(&command.output().unwrap());
    assert_eq!(done.code, 4, "{}", done.err);
    assert!(done.err.contains(socket.to_str().unwrap()) && done.err.contains("another daemon"), "{}", done.err);
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok(), "the first one goes on");
}

#[test]
fn what_a_killed_daemon_left_is_replaced_and_nothing_else() {
    let store = Orlop::new();
    let mut served = store.serve(&[]);
    let socket = served.socket();
    served.process().kill();
    assert!(socket.exists());
    let done = Done::of(&binary().arg("--address").arg(&socket).arg("images").output().unwrap());
    assert_eq!(done.code, 8, "{}", done.err);
    let mut command = binary();
    command.args(["serve", "--root"]).arg(store.root()).arg("--socket").arg(&socket);
    let log = store.path("log");
    let mut again = orlop_testkit::process::Daemon::start(&mut command, &log).unwrap();
    again.wait_for(|_| std::os::unix::net::UnixStream::connect(&socket).ok());
    again.stop();

    let file = store.path("a file");
    std::fs::write(&file, "precious").unwrap();
    let mut command = binary();
    command.args(["serve", "--root"]).arg(store.root()).arg("--socket").arg(&file);
    let done = Done::of(&command.output().unwrap());
    assert_eq!(done.code, 4, "{}", done.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_path_too_long_for_a_socket_is_a_usage_error() {
    let store = Orlop::new();
    let done = store.run(["serve", "--socket", &format!("/tmp/{}", "x".repeat(200))]);
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("107"), "{}", done.err);
}

/// Regression: a line of the log had the names of all hash references that a pass wrote: of a store of 10,000 images, megabytes.
#[test]
fn a_line_of_the_log_names_a_few_of_many() {
    let store = Orlop::new();
    let config = store.path("config.toml");
    std::fs::write(&config, "[images]\ncri_namespaces = []\n").unwrap();
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/small:1", &small())])).unwrap();
    store.ok(["--config", config.to_str().unwrap(), "import", "--no-unpack", file.to_str().unwrap()]);
    let names: Vec<String> = (0..20).map(|n| format!("example.com/small{n}:1")).collect();
    store.ok(["--config", config.to_str().unwrap(), "tag", "small:1"]
        .into_iter()
        .chain(names.iter().map(String::as_str)));
    assert_eq!(store.records().len(), 21);
    let mut served = store.serve(&[]);
    let line = served.process().wait_for(|daemon| {
        Some(daemon.log().lines().find(|line| line.contains("hash references brought in order"))?.to_owned())
    });
    assert_eq!(store.records().len(), 21 + 21 + 1, "digest references and the image ID");
    assert!(line.contains("and 19 more"), "{line}");
    assert!(line.matches("sha256:").count() <= 9, "{line}");
}
