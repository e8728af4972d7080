//! Clients that vanish without a word in the middle of what lasts: streams, imports, exports, pulls, writes.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::streaming::v1::StreamInit;
use orlop_api::containerd::services::streaming::v1::streaming_client::StreamingClient;
use orlop_api::containerd::services::transfer::v1::transfer_client::TransferClient;
use orlop_api::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use orlop_api::containerd::types::transfer as types;
use orlop_api::runtime::v1 as cri;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use prost_types::Any;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::sides::{Ours, Peer};
use crate::values::{any, begun};
use crate::wire::{PATIENCE, connect, request};

const CLIENTS: u64 = 10;

/// Calls that each of them has open: three streams, two transfers, a pull, a write.
const CALLS: u64 = 7;

/// Bytes of an archive in one message.
const PIECE: usize = 16 << 10;

/// A client's side of a stream.
struct Stream {
    send: mpsc::Sender<Any>,
    _answers: tonic::Streaming<Any>,
}

impl Stream {
    /// Returns when the name is taken.
    async fn open(channel: &Channel, name: &str) -> Self {
        let (send, receive) = mpsc::channel(1 << 10);
        send.send(any(&StreamInit { id: name.into() })).await.unwrap();
        let mut client = StreamingClient::new(channel.clone());
        let mut answers = client.stream(request(ReceiverStream::new(receive))).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        Self { send, _answers: answers }
    }
}

fn transfer(channel: &Channel, source: Any, destination: Any, progress: &str) {
    let options = Some(TransferOptions { progress_stream: progress.into() });
    let wanted = TransferRequest { source: Some(source), destination: Some(destination), options };
    let mut client = TransferClient::new(channel.clone());
    tokio::spawn(async move { client.transfer(request(wanted)).await });
}

/// Opens everything and waits for ever.
async fn client(socket: PathBuf, number: u64, archive: Vec<u8>, registry: String, ready: mpsc::Sender<()>) {
    let channel = connect(&socket).await;
    let name = |what: &str| format!("{what}-{number}");
    let progress = Stream::open(&channel, &name("progress")).await;
    let import = Stream::open(&channel, &name("import")).await;
    let export = Stream::open(&channel, &name("export")).await;
    let from = types::ImageImportStream { stream: name("import"), ..Default::default() };
    let to = types::ImageStore { name: name("example.org/imported:"), ..Default::default() };
    transfer(&channel, any(&from), any(&to), &name("progress"));
    for piece in archive[..archive.len() / 2].chunks(PIECE) {
        import.send.send(any(&types::Data { data: piece.to_vec().into() })).await.unwrap();
    }
    // Nobody says that it takes a byte.
    let from = types::ImageStore { name: "example.org/there:1".into(), ..Default::default() };
    let to = types::ImageExportStream { stream: name("export"), ..Default::default() };
    transfer(&channel, any(&from), any(&to), "");
    let image = cri::ImageSpec { image: format!("{registry}/app:{number}"), ..Default::default() };
    let wanted = cri::PullImageRequest { image: Some(image), ..Default::default() };
    let mut pulling = ImageServiceClient::new(channel.clone());
    tokio::spawn(async move { pulling.pull_image(request(wanted)).await });
    let (send, receive) = mpsc::channel(1);
    send.send(begun(&name("write"))).await.unwrap();
    let written = ContentClient::new(channel).write(request(ReceiverStream::new(receive))).await.unwrap();
    let mut written = written.into_inner();
    written.message().await.unwrap().unwrap();
    ready.send(()).await.unwrap();
    std::future::pending::<()>().await;
    drop((progress, import, export, send, written));
}

/// Refs of what was being written.
async fn refs(peer: Peer) -> Vec<String> {
    let mut client = ContentClient::new(connect(&peer.socket).await);
    let found = client.list_statuses(request(content::ListStatusesRequest::default())).await.unwrap().into_inner();
    found.statuses.into_iter().map(|status| status.r#ref).collect()
}

async fn abort(peer: Peer, refs: Vec<String>) {
    let mut client = ContentClient::new(connect(&peer.socket).await);
    for reference in refs {
        client.abort(request(content::AbortRequest { r#ref: reference })).await.unwrap();
    }
}

#[test]
fn clients_that_vanish_in_the_middle_of_anything_leave_nothing_but_their_writes() {
    let mut ours = Ours::start();
    let noise = |seed| Content::image(&Image::host().layer(Layer::noise("noise", seed, 1 << 20)));
    let file = ours.store.path("there.tar");
    std::fs::write(&file, archive::oci_archive(&[("example.org/there:1", &noise(1))])).unwrap();
    ours.store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    let archive = archive::oci_archive(&[("example.org/new:1", &noise(2))]);
    // It takes connections and never says anything.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = registry.local_addr().unwrap().to_string();
    let before = ours.ask(refs);
    assert!(before.is_empty(), "{before:?}");

    let crowd = Runtime::new().unwrap();
    let (ready, mut all) = mpsc::channel(CLIENTS as usize);
    for number in 0..CLIENTS {
        crowd.spawn(client(ours.served.socket(), number, archive.clone(), host.clone(), ready.clone()));
    }
    for _ in 0..CLIENTS {
        let one = crowd.block_on(async { tokio::time::timeout(PATIENCE, all.recv()).await });
        one.expect("all are in the middle");
    }
    ours.reaches("orlop_calls_running", CLIENTS * CALLS);
    crowd.shutdown_timeout(Duration::from_secs(10));

    ours.reaches("orlop_calls_running", 0);
    ours.reaches("orlop_stored{kind=\"leases\"}", 0);
    // Names of streams are free again.
    ours.ask(|peer| async move {
        let channel = connect(&peer.socket).await;
        for number in 0..CLIENTS {
            for what in ["progress", "import", "export"] {
                Stream::open(&channel, &format!("{what}-{number}")).await;
            }
        }
    });
    let left = ours.ask(refs);
    let writes = (0..CLIENTS).filter(|number| left.contains(&format!("write-{number}"))).count();
    assert_eq!(writes as u64, CLIENTS, "each write can go on: {left:?}");
    ours.ask(|peer| abort(peer, left));
    assert_eq!(ours.store.records(), ["example.org/there:1"]);
    ours.holds_only(0, 0);
}
