//! What a store of images says to those who take it for a container runtime.

use orlop_api::runtime::v1 as pb;
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;

use crate::rig::Node;

#[tokio::test(flavor = "multi_thread")]
async fn version_is_what_kubelet_takes() {
    let node = Node::new().await;
    let version = node.runtime().version(pb::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version.version, "0.1.0", "kubelet refuses any other");
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("orlop", "v1"));
    assert_eq!(version.runtime_version.split('.').count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_that_nothing_is_run_here_and_why() {
    let node = Node::new().await;
    let quiet = node.runtime().status(pb::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let conditions = quiet.status.unwrap().conditions;
    assert_eq!(conditions.iter().map(|c| c.r#type.as_str()).collect::<Vec<_>>(), ["RuntimeReady", "NetworkReady"]);
    for condition in conditions {
        assert!(!condition.status && condition.reason == "ImageStoreOnly", "{condition:?}");
        assert!(condition.message.contains("runs no containers"), "{condition:?}");
    }
    assert!(quiet.info.is_empty() && quiet.runtime_handlers.is_empty());
    let told = node.runtime().status(pb::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&told.info["orlop"]).unwrap();
    assert_eq!(info["snapshotters"], serde_json::json!(["overlayfs", "native", "erofs"]));
}

/// The names of a service's calls, as its definition has them.
fn calls(service: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/proto/cri/v1/api.proto");
    let text = std::fs::read_to_string(path).unwrap();
    let body = text.split(&format!("service {service} {{")).nth(1).unwrap().split("\n}").next().unwrap();
    let names = body.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    names.map(|rest| rest.split('(').next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_call_says_what_orlop_is() {
    let node = Node::new().await;
    let calls = calls("RuntimeService");
    assert_eq!(calls.len(), 37);
    for call in calls.iter().filter(|call| !["Version", "Status"].contains(&call.as_str())) {
        let mut client = tonic::client::Grpc::new(node.channel.clone());
        client.ready().await.unwrap();
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{call}").parse().unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let status = client.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{call}");
        assert!(status.message().starts_with(&format!("{call}: Orlop keeps the images")), "{status:?}");
    }
}
