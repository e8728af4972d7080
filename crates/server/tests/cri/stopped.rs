//! Pulls that their clients give up in the middle, by every way in: the lease ends at once, and the next pull goes on
//! where this one was.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::transfer::v1::TransferRequest;
use orlop_api::containerd::services::transfer::v1::transfer_client::TransferClient;
use orlop_api::containerd::types::transfer as types;
use orlop_api::orlop::v1::orlop_client::OrlopClient;
use orlop_api::orlop::v1::{PullRequest, RegistryOptions};
use orlop_content::IngestManager;
use orlop_image::{Images, Settings};
use orlop_metadata::gc::Disposal;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::proxy::{Fault, Proxy};
use orlop_testkit::registry::Options;
use prost::{Message, Name};
use prost_types::Any;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::rig::{Node, Shelf, client, pull, request, scope};

type Pulling = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;
type Way = fn(Channel, String) -> Pulling;

fn of_node<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, "k8s.io".parse().unwrap());
    request
}

fn by_cri(channel: Channel, name: String) -> Pulling {
    Box::pin(async move { pull(&client(&channel), request(&name)).await.map(drop) })
}

fn by_transfer(channel: Channel, name: String) -> Pulling {
    fn any<M: Message + Name>(message: &M) -> Option<Any> {
        Some(Any { type_url: M::full_name(), value: message.encode_to_vec() })
    }
    Box::pin(async move {
        let source = types::OciRegistry { reference: name.clone(), ..Default::default() };
        let destination = types::ImageStore { name, ..Default::default() };
        let wanted = TransferRequest { source: any(&source), destination: any(&destination), options: None };
        TransferClient::new(channel).transfer(of_node(wanted)).await.map(drop)
    })
}

fn by_orlop(channel: Channel, name: String) -> Pulling {
    Box::pin(async move {
        let registry = Some(RegistryOptions { plain_http: true, ..Default::default() });
        let wanted = PullRequest { reference: name, registry, no_unpack: true, ..Default::default() };
        let mut progress = OrlopClient::new(channel).pull(of_node(wanted)).await?.into_inner();
        while progress.message().await?.is_some() {}
        Ok(())
    })
}

async fn leases(channel: &Channel) -> Vec<leases::Lease> {
    let found = LeasesClient::new(channel.clone()).list(of_node(leases::ListRequest::default())).await;
    found.unwrap().into_inner().leases
}

/// Waits until a question has an answer.
async fn answered<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How much of a blob of this size has come.
async fn arrived(node: &Node, size: u64) -> Option<u64> {
    let writes = node.store.content(&scope()).statuses().await.unwrap();
    writes.into_iter().find(|write| write.total == size && write.offset > 0).map(|write| write.offset)
}

/// The bytes that the metrics say were pulled.
async fn pulled(node: &Node) -> u64 {
    let text = node.server.metrics_text().await;
    let line = text.lines().find_map(|line| line.strip_prefix("orlop_pulled_bytes_total "));
    line.unwrap().parse().unwrap()
}

/// Stops a pull by one way in the middle, and pulls again.
async fn stop_and_go_on(way: Way, in_process: bool, seed: u64) {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let content = Content::image(&Image::host().layer(Layer::noise("noise", seed, 2_000_000)));
    let size = content.blobs.values().map(|blob| blob.bytes.len() as u64).max().unwrap();
    shelf.put("a:1", &content).await;
    let proxy = Proxy::start(shelf.registry.address());
    let name = format!("{}/a:1", proxy.host());
    let node = Node::new().await;
    let channel = if in_process { node.server.in_process() } else { node.channel.clone() };

    proxy.set_default(Fault::StallAfter(1_200_000));
    let pulling = tokio::spawn(way(channel.clone(), name.clone()));
    let before = answered("something comes", async || arrived(&node, size).await).await;
    assert_eq!(leases(&node.channel).await.len(), 1);
    assert!(pulled(&node).await >= before, "what comes is counted as it comes");
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    answered("the lease ends", async || leases(&node.channel).await.is_empty().then_some(())).await;
    node.store.collect(Disposal::Reclaim).unwrap();
    assert!(node.names().is_empty());
    assert!(arrived(&node, size).await >= Some(before), "what came is there still");
    assert_eq!(node.snapshots("overlayfs"), 0, "what was being unpacked goes");

    let log = shelf.registry.log().len();
    proxy.set_default(Fault::None);
    proxy.release();
    way(channel, name).await.unwrap();
    let log = shelf.registry.log()[log..].to_owned();
    let parts = log.lines().filter(|line| line.contains("\"GET /v2/a/blobs/") && line.contains("\" 206 "));
    assert_eq!(parts.count(), 1, "the layer's rest was asked for: {log}");
    assert!(leases(&node.channel).await.is_empty());
    let (all, counted) = (content.blobs.values().map(|blob| blob.bytes.len() as u64).sum(), pulled(&node).await);
    assert!((all..=all + 1_300_000).contains(&counted), "{counted} of {all}, and what came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_kubelet_gives_up_ends_its_lease_and_the_next_goes_on() {
    stop_and_go_on(by_cri, false, 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_given_up_ends_its_lease_and_the_next_goes_on() {
    stop_and_go_on(by_transfer, false, 51).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_orlop_v1_that_is_given_up_ends_its_lease_and_the_next_goes_on() {
    stop_and_go_on(by_orlop, false, 52).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_in_process_that_is_given_up_ends_its_lease_and_the_next_goes_on() {
    stop_and_go_on(by_orlop, true, 53).await;
}

#[test]
fn a_runtime_that_shuts_down_in_the_middle_of_a_pull_leaves_no_lease() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let outer = runtime();
    let Some((shelf, node)) = outer.block_on(async {
        let shelf = Shelf::start(&Options::new())?;
        shelf.put("a:1", &Content::image(&Image::host().layer(Layer::noise("noise", 54, 2_000_000)))).await;
        Some((shelf, Node::new().await))
    }) else {
        return;
    };
    let proxy = Proxy::start(shelf.registry.address());
    proxy.set_default(Fault::StallAfter(1_200_000));
    let (inner, images) = (runtime(), Images::new(node.store.clone(), Settings::default()));
    let name = format!("{}/a:1", proxy.host());
    let pulling = inner.spawn(async move {
        let client = orlop_remote::Client::new(orlop_remote::ClientOptions::default());
        let request = orlop_image::PullRequest { reference: name, ..Default::default() };
        images.pull(&scope(), &client, &request, &|_| {}).await.map(drop)
    });
    outer.block_on(crate::rig::until(|| proxy.counts().faults > 0));
    assert_eq!(node.store.leases("k8s.io", &[]).unwrap().len(), 1);
    inner.shutdown_timeout(Duration::from_secs(60));
    assert!(outer.block_on(pulling).unwrap_err().is_cancelled());
    assert!(node.store.leases("k8s.io", &[]).unwrap().is_empty());
}
