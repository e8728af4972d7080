//! Messages of wrong types wherever a call takes one within another.

use orlop_api::containerd::services::containers::v1 as containers;
use orlop_api::containerd::services::diff::v1 as diff;
use orlop_api::containerd::services::events::v1 as events;
use orlop_api::containerd::services::introspection::v1 as introspection;
use orlop_api::containerd::services::streaming::v1 as streaming;
use orlop_api::containerd::services::transfer::v1 as transfer;
use orlop_api::containerd::types;
use prost::Message;
use prost_types::Any;
use tonic::Code;

use crate::deviations::WRAPPED;
use crate::sides::{Answers, Calls, Ours, Peer, compare};
use crate::values::{any, kept, manifest, target, write};

/// Every call that takes a message within a message, with one of this type.
async fn of_type(calls: &mut Calls, case: &str, url: &str, value: &[u8]) {
    calls.within = Some(case.to_owned());
    let wrong = || Some(Any { type_url: url.into(), value: value.to_vec() });
    let store = || Some(any(&types::transfer::ImageStore { name: "a".into(), ..Default::default() }));
    for (name, source, destination) in [
        ("source", wrong(), store()),
        ("destination", store(), wrong()),
        ("both", wrong(), wrong()),
        ("no source", None, store()),
        ("no destination", store(), None),
        ("neither", None, None),
    ] {
        let wanted = transfer::TransferRequest { source, destination, options: None };
        calls.call(name, "transfer.v1.Transfer/Transfer", &wanted).await;
    }
    let init = Any { type_url: url.into(), value: streaming::StreamInit { id: "a".into() }.encode_to_vec() };
    calls.call("stream", "streaming.v1.Streaming/Stream", &wrong().unwrap()).await;
    calls.call("named stream", "streaming.v1.Streaming/Stream", &init).await;
    calls.bytes("no stream", "streaming.v1.Streaming/Stream", Vec::new()).await;
    of_events(calls, &wrong).await;
    let container = containers::Container {
        id: "a".into(),
        spec: wrong(),
        runtime: Some(containers::container::Runtime { name: "a".into(), options: wrong() }),
        extensions: [("a".to_owned(), wrong().unwrap())].into(),
        ..Default::default()
    };
    let create = containers::CreateContainerRequest { container: Some(container) };
    calls.call("container", "containers.v1.Containers/Create", &create).await;
    calls.call("blob", "content.v1.Content/Write", &write("blob", &manifest(), kept())).await;
    let payloads = [("a".to_owned(), wrong().unwrap())].into();
    let layer = types::Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        ..target().unwrap_or_default()
    };
    let apply = diff::ApplyRequest { diff: Some(layer), payloads, ..Default::default() };
    calls.call("apply", "diff.v1.Diff/Apply", &apply).await;
    let plugin = |kind: &str, id: &str| introspection::PluginInfoRequest {
        r#type: kind.into(),
        id: id.into(),
        options: wrong(),
    };
    calls
        .call("plugin", "introspection.v1.Introspection/PluginInfo", &plugin("io.containerd.snapshotter.v1", "native"))
        .await;
    calls.call("no plugin", "introspection.v1.Introspection/PluginInfo", &plugin("a", "b")).await;
    calls.within = None;
}

async fn of_events(calls: &mut Calls, wrong: &impl Fn() -> Option<Any>) {
    let publish = events::PublishRequest { topic: "/a/b".into(), event: wrong() };
    calls.call("publish", "events.v1.Events/Publish", &publish).await;
    let envelope = types::Envelope {
        timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        namespace: "test".into(),
        topic: "/a/b".into(),
        event: wrong(),
    };
    let forward = events::ForwardRequest { envelope: Some(envelope) };
    calls.call("forward", "events.v1.Events/Forward", &forward).await;
}

/// What is told of where no type is known, or no message is there, whatever the type is.
const REFUSED: [&str; 9] =
    ["source", "destination", "both", "no source", "no destination", "neither", "stream", "no stream", "no plugin"];

async fn wrapped(peer: Peer) -> Answers {
    let mut calls = Calls::new(peer).await;
    for (case, url) in [
        ("no type", ""),
        ("unknown type", "no.such.Message"),
        ("prefixed type", "type.googleapis.com/containerd.types.transfer.ImageStore"),
        ("slash", "/containerd.types.transfer.ImageStore"),
        ("other type", "containerd.types.transfer.Data"),
    ] {
        of_type(&mut calls, case, url, b"\x0a\x01a").await;
    }
    // Of the right name, but not to be read.
    for name in ["ImageStore", "OCIRegistry", "ImageImportStream", "ImageExportStream"] {
        let case = format!("broken {name}");
        of_type(&mut calls, &case, &format!("containerd.types.transfer.{name}"), b"\xff\xff\xff\xff").await;
    }
    calls.answers
}

#[test]
fn messages_of_wrong_types_are_refused_wherever_one_is_wrapped() {
    let mut ours = Ours::start();
    let answers = ours.ask(wrapped);
    let refused = |call: &str| REFUSED.iter().any(|refused| call.ends_with(&format!(": {refused}")));
    let taken: Vec<_> = answers.iter().filter(|(call, said)| refused(call) && said.code == Code::Ok).collect();
    assert!(taken.is_empty(), "{taken:#?}");
    ours.holds_only(0, 0);
    compare(&answers, WRAPPED, wrapped);
}
