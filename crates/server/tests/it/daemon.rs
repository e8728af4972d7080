//! The services on a socket: who calls, how long, how much at once; clients that behave badly; an orderly end.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::raw::{answered, framed, raw};
use crate::common::{Node, labels, request};
use bytes::Bytes;
use futures::StreamExt;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::types;
use orlop_api::orlop::v1::HistoryRequest;
use orlop_api::orlop::v1::orlop_client::OrlopClient;
use orlop_api::runtime::v1::{ImageSpec, PullImageRequest};
use orlop_metadata::Scope;
use orlop_metadata::gc::Disposal;
use orlop_oci::Digest;
use orlop_server::ServeOptions;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::proxy::{Fault, Proxy};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    node: Node,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Daemon {
    fn start(options: ServeOptions) -> Self {
        let node = Node::new();
        let socket = node.directory.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = node.server.clone();
        let serving = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            server.serve(vec![listener], &options, stopped).await
        });
        Self { node, socket, stop: Some(stop), serving }
    }

    async fn channel(&self) -> Channel {
        orlop_api::channel::unix(&self.socket).await.unwrap()
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until a gauge has a value.
    async fn gauge(&self, name: &str, wanted: &str) {
        let wanted = format!("{name} {wanted}");
        let reached = async {
            loop {
                let text = self.node.server.metrics_text().await;
                if text.lines().any(|line| line == wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            panic!("never {wanted}:\n{}", self.node.server.metrics_text().await);
        }
    }

    /// The services answer, and nothing of earlier calls is left.
    async fn is_well(&self) {
        let channel = self.channel().await;
        let listed = ContentClient::new(channel).list_statuses(request(content::ListStatusesRequest::default())).await;
        listed.unwrap();
        self.gauge("orlop_calls_running", "0").await;
        self.gauge("orlop_waiting_bytes", "0").await;
    }
}

type Answers = tonic::Streaming<content::WriteContentResponse>;

/// A write that stays open.
async fn write(channel: Channel, reference: &str) -> (mpsc::Sender<content::WriteContentRequest>, Answers) {
    let (send, receive) = mpsc::channel(4);
    let first = content::WriteContentRequest {
        action: content::WriteAction::Write.into(),
        r#ref: reference.into(),
        data: "begun".into(),
        ..Default::default()
    };
    send.send(first).await.unwrap();
    let mut answers =
        ContentClient::new(channel).write(request(ReceiverStream::new(receive))).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().offset, 5);
    (send, answers)
}

fn commit(reference: &str) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        r#ref: reference.into(),
        offset: 5,
        labels: labels(&[("containerd.io/gc.root", "yes")]),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_call_that_goes_on() {
    let daemon = Daemon::start(ServeOptions::default());
    let (_send, receive) = mpsc::channel::<content::WriteContentRequest>(1);
    let mut waiting = request(ReceiverStream::new(receive));
    waiting.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let mut client = ContentClient::new(daemon.channel().await);
    let ended = async {
        match client.write(waiting).await {
            Ok(answers) => answers.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        }
    };
    let status = tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    daemon.is_well().await;
}

/// A call with one answer that hangs in the middle of its work: a pull whose registry sends no more. A client's own clock must
/// not be the one that ends it, so there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_pull_that_hangs_and_nothing_is_left_of_it() {
    let (daemon, liar) = (Daemon::start(ServeOptions::default()), Liar::start());
    liar.put("a", "1", &Content::image(&Image::host().layer(Layer::noise("noise", 7, 2_000_000))));
    let proxy = Proxy::start(liar.host().parse().unwrap());
    proxy.set_default(Fault::StallAfter(1_200_000));
    let image = Some(ImageSpec { image: format!("{}/a:1", proxy.host()), ..Default::default() });
    let message = framed(&PullImageRequest { image, ..Default::default() }.encode_to_vec());
    let store = &daemon.node.store;
    let leases = || store.leases("k8s.io", &[]).unwrap().len();
    // As long as it takes on this machine until the pull has begun and stands still.
    for seconds in 1.. {
        let timeout = format!("{seconds}S");
        let path = "/runtime.v1.ImageService/PullImage";
        let ended = raw(&daemon.socket, path, &[("grpc-timeout", &timeout)], &message).await;
        assert_eq!(ended.0, "4", "{ended:?}");
        if proxy.counts().faults > 0 {
            break;
        }
        assert!(seconds < 60, "the pull never came to its layer");
    }
    let nothing_held = async {
        while leases() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, nothing_held).await.expect("its lease ends");
    assert!(store.images("k8s.io", &[]).unwrap().is_empty());
    store.collect(Disposal::Reclaim).unwrap();
    for driver in ["overlayfs", "native", "erofs"] {
        let snapshots = store.snapshots(&Scope::new("k8s.io", "test"), driver).unwrap();
        assert_eq!(snapshots.list(&[]).unwrap().len(), 0, "{driver}");
    }
    daemon.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_that_is_none_is_refused() {
    let daemon = Daemon::start(ServeOptions::default());
    let answer =
        raw(&daemon.socket, "/containerd.services.version.v1.Version/Version", &[("grpc-timeout", "soon")], &[0; 5])
            .await;
    assert_eq!(answer.0, "13", "{answer:?}");
    assert!(answer.1.contains("soon"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_when_the_server_is_to_end_is_finished() {
    let mut daemon = Daemon::start(ServeOptions { shutdown_limit: PATIENCE, ..ServeOptions::default() });
    let (send, mut answers) = write(daemon.channel().await, "late").await;
    daemon.stop();
    // Nobody new comes in.
    let refused = async {
        while UnixStream::connect(&daemon.socket).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    send.send(commit("late")).await.unwrap();
    let digest = answers.message().await.unwrap().unwrap().digest;
    assert_eq!(digest, Digest::of(b"begun").to_string());
    drop((send, answers));
    tokio::time::timeout(PATIENCE, daemon.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_is_cut_and_its_write_is_kept() {
    let mut daemon =
        Daemon::start(ServeOptions { shutdown_limit: Duration::from_millis(50), ..ServeOptions::default() });
    let (send, mut answers) = write(daemon.channel().await, "parked").await;
    daemon.stop();
    let status = tokio::time::timeout(PATIENCE, answers.message()).await.expect("it is cut").unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("shutting down"), "{status:?}");
    drop((send, answers));
    tokio::time::timeout(PATIENCE, daemon.serving).await.unwrap().unwrap().unwrap();
    let statuses = ContentClient::new(daemon.node.channel.clone())
        .list_statuses(request(content::ListStatusesRequest::default()))
        .await;
    let statuses = statuses.unwrap().into_inner().statuses;
    assert_eq!(statuses.iter().map(|s| (s.r#ref.as_str(), s.offset)).collect::<Vec<_>>(), [("parked", 5)]);
    // It is free to be resumed.
    let (send, mut answers) = resume(daemon.node.channel.clone(), "parked").await;
    send.send(commit("parked")).await.unwrap();
    answers.message().await.unwrap().unwrap();
}

async fn resume(channel: Channel, reference: &str) -> (mpsc::Sender<content::WriteContentRequest>, Answers) {
    let (send, receive) = mpsc::channel(4);
    let stat = content::WriteContentRequest { r#ref: reference.into(), ..Default::default() };
    send.send(stat).await.unwrap();
    let mut answers =
        ContentClient::new(channel).write(request(ReceiverStream::new(receive))).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().offset, 5);
    (send, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_names_the_process_that_called() {
    let daemon = Daemon::start(ServeOptions::default());
    let channel = daemon.channel().await;
    let image = images::Image {
        name: "example.org/a:1".into(),
        target: Some(types::Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: Digest::of(b"x").to_string(),
            size: 1,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut client = ImagesClient::new(channel.clone());
    client.create(request(images::CreateImageRequest { image: Some(image), ..Default::default() })).await.unwrap();
    let asked = HistoryRequest { name: "example.org/a:1".into(), ..Default::default() };
    let mut history = OrlopClient::new(channel).history(request(asked)).await.unwrap().into_inner();
    let row = history.message().await.unwrap().unwrap().rows.remove(0);
    let uid = rustix::process::getuid().as_raw();
    assert!(row.actor.ends_with(&format!(" (uid {uid})")), "{}", row.actor);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_have_a_bound_and_connections_wait() {
    let daemon = Daemon::start(ServeOptions { max_calls: 3, max_connections: 2, ..ServeOptions::default() });
    let (first, second) = (daemon.channel().await, daemon.channel().await);
    let mut open = Vec::new();
    for n in 0..3 {
        open.push(write(if n < 2 { first.clone() } else { second.clone() }, &format!("w{n}")).await);
    }
    let status = ContentClient::new(second.clone()).info(request(content::InfoRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");

    let third = orlop_api::channel::unix(&daemon.socket);
    let mut third =
        Box::pin(async { ContentClient::new(third.await.unwrap()).list_statuses(request(Default::default())).await });
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut third).await.is_err(), "it waits for a place");
    drop(open);
    daemon.gauge("orlop_calls_running", "0").await;
    drop((first, second));
    tokio::time::timeout(PATIENCE, third).await.unwrap().unwrap();
    daemon.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_leaves_a_write_that_can_go_on() {
    let daemon = Daemon::start(ServeOptions::default());
    for n in 0..20 {
        let held = write(daemon.channel().await, &format!("w{n}")).await;
        drop(held);
    }
    daemon.is_well().await;
    let channel = daemon.channel().await;
    let statuses = ContentClient::new(channel.clone()).list_statuses(request(Default::default())).await.unwrap();
    assert_eq!(statuses.into_inner().statuses.len(), 20);
    let (send, mut answers) = resume(channel, "w7").await;
    send.send(commit("w7")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().digest, Digest::of(b"begun").to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_the_clients_or_ours_and_comes_back() {
    let daemon = Daemon::start(ServeOptions::default());
    let path = "/containerd.services.version.v1.Version/Version";
    let long = "x".repeat(4096);
    let mut own = Vec::new();
    for given in [Some("the-clients"), None, None, Some(&long)] {
        let headers: Vec<(&str, &str)> = given.map(|id| ("x-request-id", id)).into_iter().collect();
        let found = answered(&daemon.socket, path, &headers, &framed(&[])).await.unwrap();
        let told = found["x-request-id"].to_str().unwrap().to_owned();
        match given {
            Some("the-clients") => assert_eq!(told, "the-clients"),
            _ => own.push(told),
        }
    }
    own.sort();
    own.dedup();
    assert!(own.len() == 3 && own.iter().all(|id| id.len() < 64 && id.contains('-')), "{own:?}");
    // A call that is refused has one too.
    let found = answered(&daemon.socket, path, &[("grpc-timeout", "soon")], &framed(&[])).await.unwrap();
    assert!(found.contains_key("x-request-id") && found["grpc-status"] == "13", "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_have_16_mib_and_headers_64_kib() {
    let daemon = Daemon::start(ServeOptions::default());
    let info = "/containerd.services.content.v1.Content/Info";
    // One field, a digest that is none, as long as makes the message exactly as long as may be.
    let length = (16 << 20) - 5;
    let mut message = vec![0x0a];
    let mut rest = length;
    while rest >= 0x80 {
        message.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    message.push(rest as u8);
    message.resize(16 << 20, b'x');
    let (status, told) = raw(&daemon.socket, info, &[], &framed(&message)).await;
    assert_eq!(status, "3", "{told}");

    let version = "/containerd.services.version.v1.Version/Version";
    let (fits, large) = ("x".repeat(60 << 10), "x".repeat(70 << 10));
    let found = answered(&daemon.socket, version, &[("x-note", &fits)], &framed(&[])).await.unwrap();
    assert_eq!(found["grpc-status"], "0");
    // Refused before it is a call: as HTTP does, or by resetting the stream.
    if let Ok(found) = answered(&daemon.socket, version, &[("x-note", &large)], &framed(&[])).await {
        assert!(found.get("grpc-status").is_none_or(|status| status != "0"), "{found:?}");
    }
    daemon.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_protobuf_is_refused_and_harms_nothing() {
    let daemon = Daemon::start(ServeOptions::default());
    let info = "/containerd.services.content.v1.Content/Info";
    let write = "/containerd.services.content.v1.Content/Write";
    let mut cases =
        vec![vec![], vec![0], vec![0, 0, 0, 0, 9, 1], framed(b"\xff\xff\xff\xff"), framed(&[0x0a, 0xff, 1])];
    cases.push(framed(&[0x0a; 4096]));
    // A compressed message, which nobody agreed on; and one that is said to have 4 GiB.
    cases.push(vec![1, 0, 0, 0, 1, 0]);
    cases.push(vec![0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    for bytes in cases {
        for path in [info, write] {
            let (status, message) = raw(&daemon.socket, path, &[], &bytes).await;
            assert!(path == write || !["", "0"].contains(&status.as_str()), "{path} {bytes:02x?}: {status} {message}");
        }
    }
    // As containerd answers.
    let (status, message) = raw(&daemon.socket, info, &[], &[0, 1, 0, 0, 1, 9]).await;
    assert!(status == "8" && message.contains("16777217"), "{status} {message}");
    daemon.gauge("orlop_unfinished_bytes", "0").await;
    for path in ["/containerd.services.content.v1.Content/Nothing", "/no.such.Service/Call", "/", "/x", "/é"] {
        let (status, message) = raw(&daemon.socket, &path.replace('é', "%C3%A9"), &[], &framed(&[])).await;
        assert_eq!(status, "12", "{path}: {message}");
        assert!(message.contains("unknown"), "{path}: {message}");
    }
    let text = daemon.node.server.metrics_text().await;
    assert!(!text.contains("no.such"), "clients cannot make time series: {text}");
    daemon.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_refused_and_harms_nothing() {
    let daemon = Daemon::start(ServeOptions::default());
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\0\0\0\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
        &[7; 70_000],
    ] {
        let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
        // The server may hang up before everything is written.
        let _ = stream.write_all(bytes).await;
    }
    daemon.is_well().await;
    daemon.gauge("orlop_connections", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_dead_or_never_begin_are_let_go() {
    let (keepalive, keepalive_timeout) = (Duration::from_millis(500), Duration::from_secs(3));
    let daemon = Daemon::start(ServeOptions { keepalive, keepalive_timeout, ..ServeOptions::default() });
    let alive = daemon.channel().await;
    // Nothing; half a greeting; a greeting and settings, and then no answer to anything.
    let mut held = Vec::new();
    for bytes in [&b""[..], b"PRI * HTT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        held.push(stream);
    }
    ContentClient::new(alive.clone()).list_statuses(request(Default::default())).await.unwrap();
    for mut stream in held {
        let mut said = Vec::new();
        // However it ends, it ends.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is let go");
    }
    // Who answers is kept, though it said nothing for longer than that.
    daemon.gauge("orlop_connections", "1").await;
    ContentClient::new(alive).list_statuses(request(Default::default())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_little_and_let_go() {
    const STREAMS: usize = 1000;
    let daemon = Daemon::start(ServeOptions::default());
    // More than the client's windows take in: no stream ends by itself.
    let blob = vec![7; 6 << 20];
    let digest = common_blob(&daemon, &blob).await;
    let channel = daemon.channel().await;
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        let wanted = content::ReadContentRequest { digest: digest.clone(), ..Default::default() };
        let call = ContentClient::new(channel.clone()).max_decoding_message_size(16 << 20).read(request(wanted)).await;
        unread.push(call.unwrap().into_inner());
    }
    daemon.gauge("orlop_calls_running", &STREAMS.to_string()).await;
    let text = daemon.node.server.metrics_text().await;
    let waiting: usize = text.lines().find_map(|l| l.strip_prefix("orlop_waiting_bytes ")).unwrap().parse().unwrap();
    assert!(waiting < (160 << 20), "{waiting} bytes wait: each stream holds {}", waiting / STREAMS);
    // Whoever does read gets everything.
    let wanted = content::ReadContentRequest { digest, ..Default::default() };
    let call =
        ContentClient::new(daemon.channel().await).max_decoding_message_size(16 << 20).read(request(wanted)).await;
    let mut stream = call.unwrap().into_inner();
    let mut got = 0;
    while let Some(piece) = stream.next().await {
        got += piece.unwrap().data.len();
    }
    assert_eq!(got, blob.len());
    drop(stream);
    drop((unread, channel));
    daemon.is_well().await;
}

async fn common_blob(daemon: &Daemon, blob: &[u8]) -> String {
    let first = content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        r#ref: "blob".into(),
        data: Bytes::copy_from_slice(blob),
        labels: labels(&[("containerd.io/gc.root", "yes")]),
        ..Default::default()
    };
    let client = ContentClient::new(daemon.node.channel.clone()).max_encoding_message_size(16 << 20);
    let mut answers = { client }.write(request(futures::stream::iter([first]))).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap().digest
}

/// Regression: who asked as soon as the socket answered was told now and then that there is no such service.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whether_the_store_takes_changes_is_known_to_the_first_who_asks() {
    for _ in 0..50 {
        let daemon = Daemon::start(ServeOptions::default());
        let request = HealthCheckRequest { service: "orlop.writable".into() };
        let answer = HealthClient::new(daemon.channel().await).check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
}
