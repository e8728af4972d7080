//! Events: what the store's changes, clients and other processes tell subscribers.

use std::time::Duration;

use crate::common::{Node, labels, open, request, request_in};
use orlop_api::containerd::events as event;
use orlop_api::containerd::services::events::v1 as pb;
use orlop_api::containerd::services::events::v1::events_client::EventsClient;
use orlop_api::containerd::services::images::v1::{self as images, images_client::ImagesClient};
use orlop_api::containerd::services::namespaces::v1::{self as namespaces, namespaces_client::NamespacesClient};
use orlop_api::containerd::services::snapshots::v1::{self as snapshots, snapshots_client::SnapshotsClient};
use orlop_api::containerd::types::{Descriptor, Envelope};
use orlop_metadata::{Image, Scope};
use prost::{Message, Name};
use prost_types::Any;
use tonic::{Code, Request, Streaming};

async fn subscribe(node: &Node, filters: &[&str]) -> Streaming<Envelope> {
    let filters = filters.iter().map(|&f| f.to_owned()).collect();
    EventsClient::new(node.channel.clone()).subscribe(pb::SubscribeRequest { filters }).await.unwrap().into_inner()
}

async fn next(events: &mut Streaming<Envelope>) -> Envelope {
    tokio::time::timeout(Duration::from_secs(60), events.message()).await.expect("an event comes").unwrap().unwrap()
}

/// The event of the next envelope, which must have this topic.
async fn next_of<M: Message + Name + Default>(events: &mut Streaming<Envelope>, topic: &str) -> M {
    let envelope = next(events).await;
    let event = envelope.event.unwrap();
    assert_eq!((envelope.topic.as_str(), event.type_url), (topic, M::full_name()));
    M::decode(event.value.as_slice()).unwrap()
}

fn target() -> Descriptor {
    let digest = orlop_oci::Digest::of(b"target").to_string();
    Descriptor { media_type: "a/b".into(), digest, size: 6, annotations: Default::default() }
}

#[tokio::test]
async fn changes_of_images_come_in_order_with_containerds_names() {
    let node = Node::new();
    let mut events = subscribe(&node, &[]).await;
    let mut client = ImagesClient::new(node.channel.clone());
    let image = |value: &str| {
        Some(images::Image {
            name: "a".into(),
            labels: labels(&[("l", value)]),
            target: Some(target()),
            ..Default::default()
        })
    };
    client.create(request(images::CreateImageRequest { image: image("1"), ..Default::default() })).await.unwrap();
    client.update(request(images::UpdateImageRequest { image: image("2"), ..Default::default() })).await.unwrap();
    client.delete(request(images::DeleteImageRequest { name: "a".into(), ..Default::default() })).await.unwrap();

    let created = next(&mut events).await;
    assert_eq!((created.topic.as_str(), created.namespace.as_str()), ("/images/create", "test"));
    assert!(created.timestamp.unwrap().seconds > 1_600_000_000);
    let event = created.event.unwrap();
    assert_eq!(event.type_url, "containerd.services.images.v1.ImageCreate");
    let event = images::ImageCreate::decode(event.value.as_slice()).unwrap();
    assert_eq!(event, images::ImageCreate { name: "a".into(), labels: labels(&[("l", "1")]) });
    let updated: images::ImageUpdate = next_of(&mut events, "/images/update").await;
    assert_eq!(updated.labels, labels(&[("l", "2")]));
    let deleted: images::ImageDelete = next_of(&mut events, "/images/delete").await;
    assert_eq!(deleted.name, "a");
}

#[tokio::test]
async fn changes_of_snapshots_and_namespaces_are_told() {
    let node = Node::new();
    let mut events = subscribe(&node, &["topic~=|^/snapshot/|", "topic~=|^/namespaces/|"]).await;
    let mut client = SnapshotsClient::new(node.channel.clone());
    let native = || "native".to_owned();
    let prepare = |key: &str, parent: &str| {
        request(snapshots::PrepareSnapshotRequest {
            snapshotter: native(),
            key: key.into(),
            parent: parent.into(),
            ..Default::default()
        })
    };
    client.prepare(prepare("one", "")).await.unwrap();
    let commit = snapshots::CommitSnapshotRequest {
        snapshotter: native(),
        name: "base".into(),
        key: "one".into(),
        ..Default::default()
    };
    client.commit(request(commit)).await.unwrap();
    let view = snapshots::ViewSnapshotRequest {
        snapshotter: native(),
        key: "view".into(),
        parent: "base".into(),
        ..Default::default()
    };
    client.view(request(view)).await.unwrap();
    client.prepare(prepare("two", "base")).await.unwrap();
    client
        .remove(request(snapshots::RemoveSnapshotRequest { snapshotter: native(), key: "two".into() }))
        .await
        .unwrap();
    let made = namespaces::Namespace { name: "made".into(), labels: labels(&[("a", "b")]) };
    let mut spaces = NamespacesClient::new(node.channel.clone());
    spaces.create(namespaces::CreateNamespaceRequest { namespace: Some(made) }).await.unwrap();
    spaces.delete(namespaces::DeleteNamespaceRequest { name: "made".into() }).await.unwrap();

    let prepared: event::SnapshotPrepare = next_of(&mut events, "/snapshot/prepare").await;
    assert_eq!((prepared.key.as_str(), prepared.parent.as_str(), prepared.snapshotter.as_str()), ("one", "", "native"));
    let committed: event::SnapshotCommit = next_of(&mut events, "/snapshot/commit").await;
    assert_eq!((committed.key.as_str(), committed.name.as_str()), ("one", "base"));
    let prepared: event::SnapshotPrepare = next_of(&mut events, "/snapshot/prepare").await;
    assert_eq!(prepared.key, "two", "a view is not told");
    let removed: event::SnapshotRemove = next_of(&mut events, "/snapshot/remove").await;
    assert_eq!(removed.key, "two");
    let made: event::NamespaceCreate = next_of(&mut events, "/namespaces/create").await;
    assert_eq!(made, event::NamespaceCreate { name: "made".into(), labels: labels(&[("a", "b")]) });
    let gone: event::NamespaceDelete = next_of(&mut events, "/namespaces/delete").await;
    assert_eq!(gone.name, "made");
}

fn published(topic: &str, event: Any) -> pb::PublishRequest {
    pb::PublishRequest { topic: topic.into(), event: Some(event) }
}

fn started(container: &str) -> Any {
    let event = event::TaskStart { container_id: container.into(), pid: 7 };
    Any { type_url: "containerd.events.TaskStart".into(), value: event.encode_to_vec() }
}

#[tokio::test]
async fn filters_look_into_events() {
    let node = Node::new();
    let mut by_container = subscribe(&node, &["event.container_id==two"]).await;
    let mut by_namespace = subscribe(&node, &["namespace==other,topic==\"/tasks/start\""]).await;
    let mut client = EventsClient::new(node.channel.clone());
    for container in ["one", "two"] {
        client.publish(request(published("/tasks/start", started(container)))).await.unwrap();
    }
    client.publish(request_in("other", published("/tasks/start", started("three")))).await.unwrap();
    let unknown = Any { type_url: "my.own.Event".into(), value: vec![1, 2, 3] };
    client.publish(request_in("other", published("/tasks/start", unknown.clone()))).await.unwrap();

    let found: event::TaskStart = next_of(&mut by_container, "/tasks/start").await;
    assert_eq!(found.container_id, "two");
    let found: event::TaskStart = next_of(&mut by_namespace, "/tasks/start").await;
    assert_eq!(found.container_id, "three");
    assert_eq!(next(&mut by_namespace).await.event, Some(unknown), "what is not known passes as it is");
}

#[tokio::test]
async fn what_is_forwarded_stays_as_it_is() {
    let node = Node::new();
    let mut events = subscribe(&node, &[]).await;
    let envelope = Envelope {
        timestamp: Some(prost_types::Timestamp { seconds: 5, nanos: 6 }),
        namespace: "elsewhere".into(),
        topic: "/a/b".into(),
        event: Some(started("x")),
    };
    let mut client = EventsClient::new(node.channel.clone());
    client.forward(pb::ForwardRequest { envelope: Some(envelope.clone()) }).await.unwrap();
    assert_eq!(next(&mut events).await, envelope);
    for broken in [
        Envelope { timestamp: None, ..envelope.clone() },
        Envelope { namespace: "a b".into(), ..envelope.clone() },
        Envelope { topic: "a".into(), ..envelope.clone() },
    ] {
        let refused = client.forward(pb::ForwardRequest { envelope: Some(broken) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let node = Node::new();
    let mut client = EventsClient::new(node.channel.clone());
    for topic in ["", "/", "images", "/images/", "/images//x", "/im ages"] {
        let refused = client.publish(request(published(topic, started("x")))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{topic}: {refused}");
    }
    let refused = client.publish(Request::new(published("/a", started("x")))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let refused = client.subscribe(pb::SubscribeRequest { filters: vec!["topic=x".into()] }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown, "as containerd answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_processes_changes_are_told_once_and_a_shutdown_ends_subscriptions() {
    let node = Node::new();
    let socket = node.directory.path().join("sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = node.server.clone();
    let serving = tokio::spawn(async move { server.serve_unix(listener, async { drop(stopped.await) }).await });
    let channel = orlop_api::channel::unix(&socket).await.unwrap();
    let mut events = EventsClient::new(channel).subscribe(pb::SubscribeRequest::default()).await.unwrap().into_inner();

    // A second opening of the root is what another process would have.
    let other = open(&node.directory.path().join("root"));
    let image = |name: &str| Image {
        name: name.into(),
        target: orlop_oci::Descriptor::new("a/b", orlop_oci::Digest::of(b"target"), 6),
        labels: labels(&[("by", "other")]),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        updated_at: jiff::Timestamp::UNIX_EPOCH,
    };
    // Until the follower has begun, changes of others may go by.
    let scope = Scope::new("test", "tests");
    let mut number = 0;
    let first = loop {
        other.create_image(&scope, image(&format!("n{number}"))).unwrap();
        number += 1;
        if let Ok(first) = tokio::time::timeout(Duration::from_millis(700), events.message()).await {
            break first.unwrap().unwrap();
        }
    };
    let decoded = images::ImageCreate::decode(first.event.unwrap().value.as_slice()).unwrap();
    assert_eq!(decoded.labels, labels(&[("by", "other")]));
    node.store.create_image(&scope, image("own")).unwrap();
    other.delete_image(&scope, "own", None).unwrap();
    let mut topics = Vec::new();
    while topics.last().is_none_or(|(topic, _)| topic != "/images/delete") {
        let envelope = next(&mut events).await;
        let event = images::ImageDelete::decode(envelope.event.unwrap().value.as_slice()).unwrap();
        topics.push((envelope.topic, event.name));
    }
    topics.retain(|(_, name)| name == "own");
    let told = |topic: &str| (topic.to_owned(), "own".to_owned());
    assert_eq!(topics, [told("/images/create"), told("/images/delete")]);

    stop.send(()).unwrap();
    let ended =
        tokio::time::timeout(Duration::from_secs(60), serving).await.expect("the subscription does not hold it");
    ended.unwrap().unwrap();
}
