//! The Containers service through its generated client: by itself, and call by call beside a real containerd.

use std::collections::BTreeMap;

use crate::common::{Node, labels, request, request_in};
use futures::StreamExt;
use orlop_api::containerd::events as event;
use orlop_api::containerd::services::containers::v1 as pb;
use orlop_api::containerd::services::containers::v1::container::Runtime;
use orlop_api::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_api::containerd::services::events::v1::SubscribeRequest;
use orlop_api::containerd::services::events::v1::events_client::EventsClient;
use orlop_api::containerd::services::namespaces::v1 as namespaces;
use orlop_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_metadata::gc::Disposal;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::need_root;
use prost::Message;
use prost_types::{Any, FieldMask};
use tonic::transport::Channel;
use tonic::{Code, Status};

fn any(text: &str) -> Any {
    Any { type_url: "types.containerd.io/test".into(), value: text.into() }
}

fn container(id: &str) -> pb::Container {
    pb::Container {
        id: id.into(),
        labels: labels(&[("k", "v"), ("dotted.key", "x")]),
        image: "docker.io/library/app:1".into(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: Some(any("options")) }),
        spec: Some(any("spec")),
        extensions: BTreeMap::from([("one".to_owned(), any("1")), ("two".to_owned(), any("2"))]),
        ..Default::default()
    }
}

/// The service under test; answers lose the times, which differ.
struct Client(ContainersClient<Channel>);

impl Client {
    fn new(channel: &Channel) -> Self {
        Self(ContainersClient::new(channel.clone()))
    }

    async fn create(&mut self, container: pb::Container) -> Result<pb::Container, Status> {
        let wanted = pb::CreateContainerRequest { container: Some(container) };
        Ok(timeless(self.0.create(request(wanted)).await?.into_inner().container))
    }

    async fn update(&mut self, container: pb::Container, paths: &[&str]) -> Result<pb::Container, Status> {
        let update_mask = Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() });
        let wanted = pb::UpdateContainerRequest { container: Some(container), update_mask };
        Ok(timeless(self.0.update(request(wanted)).await?.into_inner().container))
    }

    async fn get(&mut self, id: &str) -> Result<pb::Container, Status> {
        let found = self.0.get(request(pb::GetContainerRequest { id: id.into() })).await?;
        Ok(timeless(found.into_inner().container))
    }

    async fn delete(&mut self, id: &str) -> Result<(), Status> {
        self.0.delete(request(pb::DeleteContainerRequest { id: id.into() })).await.map(drop)
    }

    async fn ids(&mut self, filter: &str) -> Result<Vec<String>, Status> {
        let filters: Vec<String> = (!filter.is_empty()).then(|| filter.to_owned()).into_iter().collect();
        let listed = self.0.list(request(pb::ListContainersRequest { filters: filters.clone() })).await?.into_inner();
        let ids: Vec<String> = listed.containers.into_iter().map(|c| c.id).collect();
        let mut streamed = Vec::new();
        let mut stream = self.0.list_stream(request(pb::ListContainersRequest { filters })).await?.into_inner();
        while let Some(message) = stream.message().await? {
            streamed.push(message.container.unwrap().id);
        }
        assert_eq!(streamed, ids);
        Ok(ids)
    }
}

fn timeless(container: Option<pb::Container>) -> pb::Container {
    let mut container = container.unwrap();
    assert!(container.created_at.take().is_some_and(|t| t.seconds > 1_700_000_000));
    assert!(container.updated_at.take().is_some_and(|t| t.seconds > 1_700_000_000));
    container
}

#[tokio::test]
async fn a_container_is_made_changed_found_and_deleted() {
    let node = Node::new();
    let mut client = Client::new(&node.channel);
    assert_eq!(client.create(container("a")).await.unwrap(), container("a"));
    assert_eq!(client.get("a").await.unwrap(), container("a"));
    let told = client.create(container("a")).await.unwrap_err();
    assert_eq!((told.code(), told.message().contains("\"a\"")), (Code::AlreadyExists, true));

    let change = pb::Container { labels: labels(&[("dotted.key", ""), ("k", "w")]), ..container("a") };
    let updated = client.update(change, &["labels.dotted.key"]).await.unwrap();
    assert_eq!(updated.labels, labels(&[("k", "v")]));
    let change = pb::Container { extensions: BTreeMap::from([("two".to_owned(), any("3"))]), ..container("a") };
    let updated = client.update(change, &["extensions.two"]).await.unwrap();
    assert_eq!(updated.extensions, BTreeMap::from([("one".to_owned(), any("1")), ("two".to_owned(), any("3"))]));
    let plain = pb::Container { extensions: BTreeMap::new(), spec: Some(any("other")), ..container("a") };
    let updated = client.update(plain.clone(), &[]).await.unwrap();
    assert_eq!(updated, plain);
    assert_eq!(client.get("a").await.unwrap(), plain);

    client.create(container("b")).await.unwrap();
    assert_eq!(client.ids("").await.unwrap(), ["a", "b"]);
    assert_eq!(client.ids("id==b").await.unwrap(), ["b"]);
    client.delete("a").await.unwrap();
    assert_eq!(client.delete("a").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.ids("").await.unwrap(), ["b"]);
    let other = request_in("other", pb::ListContainersRequest::default());
    assert!(client.0.list(other).await.unwrap().into_inner().containers.is_empty());
}

/// Everything that a client can see of a run of calls, good and bad.
async fn transcript(channel: &Channel) -> Vec<String> {
    let mut client = Client::new(channel);
    let mut told = Vec::new();
    let mut note = |what: &str, answer: Result<pb::Container, Status>| {
        told.push(format!("{what}: {:?}", answer.map_err(|status| status.code())));
    };
    note("create", client.create(container("a")).await);
    note("again", client.create(container("a")).await);
    note("bad id", client.create(container("a b")).await);
    note("no id", client.create(container("")).await);
    let runtime = Some(Runtime::default());
    note("no runtime", client.create(pb::Container { runtime, ..container("b") }).await);
    note("key alone", client.create(pb::Container { snapshot_key: "key".into(), ..container("b") }).await);
    let nameless = BTreeMap::from([(String::new(), any("x"))]);
    note("nameless", client.create(pb::Container { extensions: nameless, ..container("b") }).await);
    let huge = labels(&[("huge", "x".repeat(5000).as_str())]);
    note("huge label", client.create(pb::Container { labels: huge, ..container("b") }).await);
    note("unset label", client.create(pb::Container { labels: labels(&[("e", "")]), ..container("c") }).await);
    note("get", client.get("a").await);
    note("get none", client.get("none").await);
    note("update none", client.update(container("none"), &[]).await);
    note("update no id", client.update(container(""), &[]).await);
    note("snapshotter", client.update(pb::Container { snapshotter: "native".into(), ..container("a") }, &[]).await);
    let runtime = Some(Runtime { name: "other".into(), options: None });
    note("runtime", client.update(pb::Container { runtime, ..container("a") }, &[]).await);
    note("sandbox", client.update(pb::Container { sandbox: "s".into(), ..container("a") }, &[]).await);
    for path in ["image", "spec", "labels", "labels.k", "labels.none", "extensions.one", "extensions", "runtime", "id"]
    {
        let given = pb::Container {
            image: "other".into(),
            spec: Some(any("other")),
            labels: labels(&[("k", ""), ("n", "1")]),
            extensions: BTreeMap::from([("one".to_owned(), any("9"))]),
            ..container("a")
        };
        note(path, client.update(given, &[path]).await);
    }
    note("key", client.update(pb::Container { snapshot_key: "k".into(), ..container("a") }, &["snapshotkey"]).await);
    for filter in
        ["id==a", "image==other", "runtime.name~=runc", "runtime==x", "labels.n", "labels.\"n\"==1", "none==1", "id=="]
    {
        told.push(format!("{filter}: {:?}", client.ids(filter).await.map_err(|status| status.code())));
    }
    told.push(format!("delete: {:?}", client.delete("a").await.map_err(|status| status.code())));
    told.push(format!("delete: {:?}", client.delete("a").await.map_err(|status| status.code())));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_containerds() {
    if !need_root() {
        return;
    }
    let ours = transcript(&Node::new().channel).await;
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &Options::default());
        let theirs = transcript(&orlop_api::channel::unix(&containerd.socket()).await.unwrap()).await;
        assert_eq!(ours, theirs, "{}", programs.version());
    }
}

/// containerd 1.6 refuses a container without a spec, 2.x keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_may_lack_its_spec() {
    let bare = pb::Container { spec: None, ..container("b") };
    assert_eq!(Client::new(&Node::new().channel).create(bare.clone()).await.unwrap(), bare);
    let (Some(programs), true) = (Programs::current(), need_root()) else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
    assert_eq!(Client::new(&channel).create(bare.clone()).await.unwrap(), bare);
}

async fn prepare(node: &Node, key: &str) {
    let wanted =
        snapshots::PrepareSnapshotRequest { snapshotter: "native".into(), key: key.into(), ..Default::default() };
    SnapshotsClient::new(node.channel.clone()).prepare(request(wanted)).await.unwrap();
}

fn keys(node: &Node) -> Vec<String> {
    let snapshots = node.store.snapshots(&orlop_metadata::Scope::new("test", "test"), "native").unwrap();
    let mut keys: Vec<String> = snapshots.list(&[]).unwrap().into_iter().map(|s| s.name).collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn a_container_keeps_its_snapshot_and_what_its_labels_name() {
    let node = Node::new();
    let mut client = Client::new(&node.channel);
    let refers = labels(&[("containerd.io/gc.ref.snapshot.native/extra", "named")]);
    let made =
        pb::Container { snapshotter: "native".into(), snapshot_key: "own".into(), labels: refers, ..container("a") };
    client.create(made.clone()).await.unwrap();
    for key in ["own", "named", "loose"] {
        prepare(&node, key).await;
    }
    node.store.collect(Disposal::Reclaim).unwrap();
    assert_eq!(keys(&node), ["named", "own"]);
    assert!(node.store.collect_full(Disposal::Reclaim).unwrap().missed.is_empty());
    assert_eq!(keys(&node), ["named", "own"]);
    assert_eq!(node.store.check_metadata().unwrap(), []);

    client.update(pb::Container { labels: labels(&[]), ..made }, &["labels"]).await.unwrap();
    node.store.collect(Disposal::Reclaim).unwrap();
    assert_eq!(keys(&node), ["own"]);

    let delete = || request(namespaces::DeleteNamespaceRequest { name: "test".into() });
    let told = NamespacesClient::new(node.channel.clone()).delete(delete()).await.unwrap_err();
    assert_eq!(told.code(), Code::FailedPrecondition);
    assert!(told.message().contains("containers"), "{}", told.message());

    client.delete("a").await.unwrap();
    node.store.collect(Disposal::Reclaim).unwrap();
    assert!(keys(&node).is_empty());
    assert_eq!(node.store.check_metadata().unwrap(), []);
    NamespacesClient::new(node.channel.clone()).delete(delete()).await.unwrap();
}

#[tokio::test]
async fn subscribers_hear_of_containers() {
    let node = Node::new();
    let filters = vec!["topic~=/containers/".to_owned()];
    let subscribed = EventsClient::new(node.channel.clone()).subscribe(SubscribeRequest { filters }).await.unwrap();
    let mut events = subscribed.into_inner();
    let mut client = Client::new(&node.channel);
    client.create(container("a")).await.unwrap();
    let key = pb::Container { snapshot_key: String::new(), ..container("a") };
    client.update(key, &[]).await.unwrap();
    client.delete("a").await.unwrap();

    let mut next = async || {
        let envelope = events.next().await.unwrap().unwrap();
        (envelope.topic, envelope.event.unwrap().value)
    };
    let (topic, value) = next().await;
    let made = event::ContainerCreate::decode(value.as_slice()).unwrap();
    assert_eq!((topic.as_str(), made.id.as_str(), made.image), ("/containers/create", "a", container("a").image));
    let runtime = made.runtime.unwrap();
    assert_eq!((runtime.name.as_str(), runtime.options), ("io.containerd.runc.v2", Some(any("options"))));
    let (topic, value) = next().await;
    let changed = event::ContainerUpdate::decode(value.as_slice()).unwrap();
    assert_eq!((topic.as_str(), changed.labels), ("/containers/update", container("a").labels));
    let (topic, value) = next().await;
    let gone = event::ContainerDelete::decode(value.as_slice()).unwrap();
    assert_eq!((topic.as_str(), gone.id.as_str()), ("/containers/delete", "a"));
}
