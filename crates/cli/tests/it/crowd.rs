//! Ten thousand streams that stay open and are not read, of clients that then vanish: the daemon's memory has a bound,
//! others are served meanwhile, and nothing is left.

use std::time::Duration;

use crate::common;
use crate::common::Orlop;
use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::content::v1::{ReadContentRequest, WriteAction, WriteContentRequest};
use orlop_api::containerd::services::events::v1::SubscribeRequest;
use orlop_api::containerd::services::events::v1::events_client::EventsClient;
use orlop_testkit::process::Daemon;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::Channel;

const READS: usize = 5000;
const SUBSCRIPTIONS: usize = 4800;
const WRITES: usize = 200;
const CONNECTIONS: usize = 10;

/// What a process may have grown by. Each stream costs some kilobytes, and a small piece if it is being read.
const BOUND_BYTES: u64 = 640 << 20;

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, "test".parse().unwrap());
    request
}

fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A blob larger than all windows of a client, so that no stream of it ends unread.
async fn blob(channel: Channel) -> String {
    let piece = |n: i64| WriteContentRequest {
        action: (if n == 3 { WriteAction::Commit } else { WriteAction::Write }).into(),
        r#ref: "blob".into(),
        offset: n << 21,
        data: vec![n as u8; 2 << 20].into(),
        labels: [("containerd.io/gc.root".to_owned(), "yes".to_owned())].into(),
        ..Default::default()
    };
    let pieces = tokio_stream::iter((0..4).map(piece));
    let mut answers = ContentClient::new(channel).write(request(pieces)).await.unwrap().into_inner();
    let mut digest = String::new();
    while let Some(answer) = answers.message().await.unwrap() {
        digest = answer.digest;
    }
    digest
}

/// What keeps streams open.
type Held = Box<dyn std::any::Any + Send>;

async fn open(channel: Channel, digest: &str, number: usize) -> Vec<Held> {
    let mut held: Vec<Held> = Vec::new();
    for n in 0..WRITES / CONNECTIONS {
        let (send, receive) = mpsc::channel(1);
        let first = WriteContentRequest { r#ref: format!("{number}-{n}"), ..Default::default() };
        send.send(first).await.unwrap();
        let call = ContentClient::new(channel.clone()).write(request(ReceiverStream::new(receive))).await.unwrap();
        let mut answers = call.into_inner();
        answers.message().await.unwrap().unwrap();
        held.push(Box::new((send, answers)));
    }
    for _ in 0..READS / CONNECTIONS {
        let wanted = ReadContentRequest { digest: digest.into(), ..Default::default() };
        held.push(Box::new(ContentClient::new(channel.clone()).read(request(wanted)).await.unwrap()));
    }
    for _ in 0..SUBSCRIPTIONS / CONNECTIONS {
        let all = SubscribeRequest::default();
        held.push(Box::new(EventsClient::new(channel.clone()).subscribe(request(all)).await.unwrap()));
    }
    held
}

#[test]
fn ten_thousand_open_streams_have_a_bound_and_leave_nothing() {
    let store = Orlop::new();
    let mut served = store.serve(&["--metrics", "127.0.0.1:0"]);
    let metrics = common::metrics_address(&mut served);
    let gauge = |name: &str| {
        let page = common::get(&metrics, "/metrics");
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    let socket = served.socket();
    let before = resident(served.process());
    let crowd = tokio::runtime::Runtime::new().unwrap();
    let held = crowd.block_on(async {
        let digest = blob(orlop_api::channel::unix(&socket).await.unwrap()).await;
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..CONNECTIONS {
            let channel = orlop_api::channel::unix(&socket).await.unwrap();
            let digest = digest.clone();
            clients.spawn(async move { open(channel, &digest, number).await });
        }
        clients.join_all().await
    });
    let streams = (READS + SUBSCRIPTIONS + WRITES) as u64;
    served.process().wait_for(|_| (gauge("orlop_calls_running")? >= streams).then_some(()));
    let grown = resident(served.process()).saturating_sub(before);
    assert!(grown < BOUND_BYTES, "{streams} streams cost {grown} bytes");
    eprintln!("{streams} streams: {} MiB more, {} bytes each", grown >> 20, grown / streams);
    assert_eq!(store.ok(["content", "ls", "-o", "name", "-n", "test"]).lines().count(), 1, "others are served");

    // They vanish without a word.
    drop(held);
    crowd.shutdown_timeout(Duration::from_secs(10));
    served.process().wait_for(|_| (gauge("orlop_calls_running")? == 0).then_some(()));
    served.process().wait_for(|_| (gauge("orlop_waiting_bytes")? == 0).then_some(()));
    served.process().wait_for(|_| (gauge("process_open_fds")? < 100).then_some(()));
    assert_eq!(gauge("orlop_stored{kind=\"ingests\"}"), Some(WRITES as u64), "each write can go on");
    assert_eq!(gauge("orlop_stored{kind=\"leases\"}"), Some(0));
    store.is_sound();
}
