//! Images, leases, namespaces, snapshots and introspection through the generated clients.

use crate::common::{Node, labels, request, request_in};
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::introspection::v1 as introspection;
use orlop_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::namespaces::v1 as namespaces;
use orlop_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::services::version::v1::version_client::VersionClient;
use orlop_api::containerd::types;
use orlop_api::error::{Class, details};
use orlop_oci::Digest;
use prost_types::FieldMask;
use tonic::{Code, Request, Status};

fn target(text: &str) -> types::Descriptor {
    types::Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: Digest::of(text.as_bytes()).to_string(),
        size: 7,
        annotations: labels(&[("an", "notation")]),
    }
}

fn image(name: &str, text: &str, pairs: &[(&str, &str)]) -> images::Image {
    images::Image { name: name.into(), target: Some(target(text)), labels: labels(pairs), ..Default::default() }
}

async fn create(node: &Node, image: images::Image) -> Result<images::Image, Status> {
    let wanted = images::CreateImageRequest { image: Some(image), source_date_epoch: None };
    let made = ImagesClient::new(node.channel.clone()).create(request(wanted)).await?;
    Ok(made.into_inner().image.unwrap())
}

async fn update(node: &Node, image: images::Image, paths: &[&str]) -> Result<images::Image, Status> {
    let update_mask = Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() });
    let wanted = images::UpdateImageRequest { image: Some(image), update_mask, source_date_epoch: None };
    let made = ImagesClient::new(node.channel.clone()).update(request(wanted)).await?;
    Ok(made.into_inner().image.unwrap())
}

async fn names(node: &Node, filters: &[&str]) -> Vec<String> {
    let wanted = images::ListImagesRequest { filters: filters.iter().map(|f| (*f).to_owned()).collect() };
    let found = ImagesClient::new(node.channel.clone()).list(request(wanted)).await.unwrap();
    found.into_inner().images.into_iter().map(|i| i.name).collect()
}

#[tokio::test]
async fn an_image_is_created_found_and_deleted() {
    let node = Node::new();
    let made = create(&node, image("a/b:c", "one", &[("k", "v")])).await.unwrap();
    assert_eq!((made.target, made.labels), (Some(target("one")), labels(&[("k", "v")])));
    assert!(made.created_at.is_some_and(|t| t.seconds > 1_700_000_000));
    let error = create(&node, image("a/b:c", "two", &[])).await.unwrap_err();
    assert_eq!((error.code(), details(&error).unwrap().class), (Code::AlreadyExists, Class::Conflict));
    create(&node, image("other", "two", &[])).await.unwrap();
    assert_eq!(names(&node, &[]).await, ["a/b:c", "other"]);
    assert_eq!(names(&node, &["name==other", "labels.k"]).await, ["a/b:c", "other"]);
    assert_eq!(names(&node, &["name~=^a,labels.k==v"]).await, ["a/b:c"]);

    let mut client = ImagesClient::new(node.channel.clone());
    let delete =
        |text: Option<&str>| images::DeleteImageRequest { name: "a/b:c".into(), sync: true, target: text.map(target) };
    let error = client.delete(request(delete(Some("two")))).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "it points elsewhere");
    client.delete(request(delete(Some("one")))).await.unwrap();
    let error = client.delete(request(delete(None))).await.unwrap_err();
    assert_eq!((error.code(), details(&error).unwrap().class), (Code::NotFound, Class::NotFound));
    let error = client.get(request(images::GetImageRequest { name: "a/b:c".into() })).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

/// `ctr images label` sends a target without a digest beside a mask of labels.
#[tokio::test]
async fn a_list_too_long_for_a_message_is_refused_and_filters_shorten_it() {
    let node = Node::new();
    let long = "x".repeat(4000);
    let large: std::collections::BTreeMap<String, String> = (0..500).map(|n| (n.to_string(), long.clone())).collect();
    let now = jiff::Timestamp::UNIX_EPOCH;
    for n in 0..9 {
        let target = orlop_oci::Descriptor::new("x", Digest::of(b"x"), 1);
        let (name, labels) = (format!("large-{n}"), large.clone());
        let image = orlop_metadata::Image { name, target, labels, created_at: now, updated_at: now };
        node.store.create_image(&orlop_metadata::Scope::new("test", "test"), image).unwrap();
    }
    let client = ImagesClient::new(node.channel.clone()).max_decoding_message_size(orlop_api::MAX_MESSAGE_BYTES);
    let refused = client.clone().list(request(images::ListImagesRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let filters = vec!["name~=large-[0-7]".to_owned()];
    let found = client.clone().list(request(images::ListImagesRequest { filters })).await.unwrap().into_inner().images;
    assert_eq!(found.len(), 8);
    assert!(found.iter().all(|image| image.labels == large));
}

#[tokio::test]
async fn a_mask_of_labels_needs_no_target() {
    let node = Node::new();
    create(&node, image("name", "one", &[("old", "1")])).await.unwrap();
    for empty in [None, Some(types::Descriptor::default())] {
        let change = images::Image { target: empty, ..image("name", "", &[("a.b", "2")]) };
        let updated = update(&node, change, &["labels.a.b"]).await.unwrap();
        assert_eq!(updated.labels, labels(&[("old", "1"), ("a.b", "2")]));
        assert_eq!(updated.target, Some(target("one")));
    }
    let replaced = update(&node, image("name", "two", &[]), &[]).await.unwrap();
    assert_eq!((replaced.target, replaced.labels), (Some(target("two")), labels(&[])));
    for paths in [&["target"][..], &[]] {
        let change = images::Image { target: None, ..image("name", "", &[]) };
        assert_eq!(update(&node, change, paths).await.unwrap_err().code(), Code::InvalidArgument, "{paths:?}");
    }
    assert_eq!(update(&node, image("none", "x", &[]), &["labels"]).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn who_acts_is_in_the_history() {
    let node = Node::new();
    create(&node, image("one", "1", &[])).await.unwrap();
    let wanted = images::CreateImageRequest { image: Some(image("two", "2", &[])), source_date_epoch: None };
    let mut wanted = request(wanted);
    wanted.metadata_mut().insert(orlop_api::ACTOR_HEADER, "orlop tag".parse().unwrap());
    ImagesClient::new(node.channel.clone()).create(wanted).await.unwrap();
    let actors: Vec<_> = node.store.history("test", None, 10).unwrap().into_iter().map(|h| h.actor).collect();
    assert_eq!(actors, ["orlop tag", "grpc"]);
}

#[tokio::test]
async fn resources_of_every_kind_are_leased() {
    let node = Node::new();
    let mut client = LeasesClient::new(node.channel.clone());
    let made = client.create(request(leases::CreateRequest { id: String::new(), labels: labels(&[("a", "b")]) })).await;
    let lease = made.unwrap().into_inner().lease.unwrap();
    assert!(!lease.id.is_empty());
    let id = Digest::of(b"x").to_string();
    let resource = |kind: &str| leases::Resource { id: id.clone(), r#type: kind.into() };
    let kinds = ["content", "images", "ingests", "snapshots/overlayfs"];
    for kind in kinds {
        let wanted = leases::AddResourceRequest { id: lease.id.clone(), resource: Some(resource(kind)) };
        client.add_resource(request(wanted)).await.unwrap();
    }
    for (kind, code) in
        [("snapshots", Code::InvalidArgument), ("snapshots/", Code::InvalidArgument), ("moons", Code::Unimplemented)]
    {
        let wanted = leases::AddResourceRequest { id: lease.id.clone(), resource: Some(resource(kind)) };
        assert_eq!(client.add_resource(request(wanted)).await.unwrap_err().code(), code, "{kind}");
    }
    let list = leases::ListResourcesRequest { id: lease.id.clone() };
    let listed = client.list_resources(request(list.clone())).await.unwrap().into_inner().resources;
    assert_eq!(listed.iter().map(|r| r.r#type.as_str()).collect::<Vec<_>>(), kinds);
    let wanted = leases::DeleteResourceRequest { id: lease.id.clone(), resource: Some(resource("images")) };
    client.delete_resource(request(wanted)).await.unwrap();
    assert_eq!(client.list_resources(request(list)).await.unwrap().into_inner().resources.len(), 3);
    let wanted = leases::ListRequest { filters: vec!["labels.a==b".into()] };
    assert_eq!(client.list(request(wanted)).await.unwrap().into_inner().leases[0].id, lease.id);
    let wanted = leases::AddResourceRequest { id: "none".into(), resource: Some(resource("content")) };
    assert_eq!(client.add_resource(request(wanted)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn namespaces_need_no_header_and_an_unknown_one_is_empty() {
    let node = Node::new();
    let mut client = NamespacesClient::new(node.channel.clone());
    let got = client.get(Request::new(namespaces::GetNamespaceRequest { name: "unknown".into() })).await.unwrap();
    let unknown = namespaces::Namespace { name: "unknown".into(), labels: labels(&[]) };
    assert_eq!(got.into_inner().namespace, Some(unknown));
    let named = |name: &str| Some(namespaces::Namespace { name: name.into(), labels: labels(&[("a", "b")]) });
    client.create(Request::new(namespaces::CreateNamespaceRequest { namespace: named("mine") })).await.unwrap();
    for (name, code) in [("mine", Code::AlreadyExists), ("../x", Code::InvalidArgument), ("", Code::InvalidArgument)] {
        let wanted = namespaces::CreateNamespaceRequest { namespace: named(name) };
        assert_eq!(client.create(Request::new(wanted)).await.unwrap_err().code(), code, "{name:?}");
    }
    create(&node, image("in-test", "x", &[])).await.unwrap();
    let wanted = namespaces::DeleteNamespaceRequest { name: "test".into() };
    let error = client.delete(Request::new(wanted)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "it is not empty");
    let listed = client.list(Request::new(namespaces::ListNamespacesRequest::default())).await.unwrap();
    let listed: Vec<_> = listed.into_inner().namespaces.into_iter().map(|n| n.name).collect();
    assert_eq!(listed, ["mine", "test"]);
}

#[tokio::test]
async fn snapshots_follow_containerds_rules() {
    let node = Node::new();
    let mut client = SnapshotsClient::new(node.channel.clone());
    let prepare = |key: &str, parent: &str| snapshots::PrepareSnapshotRequest {
        snapshotter: "native".into(),
        key: key.into(),
        parent: parent.into(),
        labels: labels(&[("active", "1")]),
    };
    let commit = |name: &str, key: &str| snapshots::CommitSnapshotRequest {
        snapshotter: "native".into(),
        name: name.into(),
        key: key.into(),
        labels: labels(&[("committed", "1"), ("containerd.io/gc.root", "1")]),
        parent: String::new(),
    };
    let mounts = client.prepare(request(prepare("work", ""))).await.unwrap().into_inner().mounts;
    assert_eq!(mounts[0].r#type, "bind");
    assert_eq!(client.prepare(request(prepare("work", ""))).await.unwrap_err().code(), Code::AlreadyExists);
    client.commit(request(commit("base", "work"))).await.unwrap();
    let stat = |key: &str| snapshots::StatSnapshotRequest { snapshotter: "native".into(), key: key.into() };
    let base = client.stat(request(stat("base"))).await.unwrap().into_inner().info.unwrap();
    assert_eq!(base.kind(), snapshots::Kind::Committed);
    assert!(!base.labels.contains_key("active"), "a commit replaces the labels");
    assert_eq!(client.stat(request(stat("work"))).await.unwrap_err().code(), Code::NotFound);
    client.prepare(request(prepare("child", "base"))).await.unwrap();
    let remove = |key: &str| snapshots::RemoveSnapshotRequest { snapshotter: "native".into(), key: key.into() };
    assert_eq!(client.remove(request(remove("base"))).await.unwrap_err().code(), Code::FailedPrecondition);
    let elsewhere = snapshots::StatSnapshotRequest { snapshotter: "zfs".into(), key: "base".into() };
    assert_eq!(client.stat(request(elsewhere)).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.stat(request_in("other", stat("base"))).await.unwrap_err().code(), Code::NotFound);
    let default = snapshots::ListSnapshotsRequest::default();
    let mut pages = client.list(request(default)).await.unwrap().into_inner();
    assert!(pages.message().await.unwrap().is_none(), "the default snapshotter has none");
    client.cleanup(request(snapshots::CleanupRequest { snapshotter: "native".into() })).await.unwrap();
}

/// What clients look for is found by type and by ID, with what containerd tells of it; what is not served is not listed.
#[tokio::test]
async fn plugins_are_those_that_are_served() {
    let node = Node::new();
    let mut client = IntrospectionClient::new(node.channel.clone());
    let mut find = async |filters: &[&str]| {
        let wanted = introspection::PluginsRequest { filters: filters.iter().map(|f| (*f).to_owned()).collect() };
        client.plugins(Request::new(wanted)).await.unwrap().into_inner().plugins
    };
    let all = find(&[]).await;
    let named = |kind: &str, id: &str| all.iter().find(|p| p.r#type == format!("io.containerd.{kind}") && p.id == id);
    let services =
        ["containers", "content", "cri", "diff", "events", "healthcheck", "images", "introspection", "leases"];
    for id in
        services.into_iter().chain(["mounts", "namespaces", "snapshots", "streaming", "tasks", "transfer", "version"])
    {
        assert!(named("grpc.v1", id).is_some(), "{id}");
    }
    for (kind, id) in
        [("transfer.v1", "local"), ("streaming.v1", "manager"), ("lease.v1", "manager"), ("mount-manager.v1", "bolt")]
    {
        assert!(named(kind, id).is_some_and(|p| p.init_err.is_none()), "{kind}");
    }
    assert!(named("grpc.v1", "sandboxes").is_none());
    let kinds: std::collections::BTreeSet<&str> = all.iter().map(|p| p.r#type.as_str()).collect();
    let dangling = all.iter().flat_map(|p| &p.requires).find(|kind| !kinds.contains(kind.as_str()));
    assert_eq!(dangling, None, "stands on what is not there");

    let root = node.store.root().join("content").display().to_string();
    assert_eq!(named("content.v1", "content").unwrap().exports, labels(&[("root", &root)]));
    assert_eq!(named("metadata.v1", "bolt").unwrap().exports["policy"], "shared");
    let confinement = orlop_snapshot::confinement().to_string();
    assert_eq!(named("differ.v1", "walking").unwrap().exports["confinement"], confinement);
    let overlay = named("snapshotter.v1", "overlayfs").unwrap();
    assert!(overlay.capabilities.contains(&"rebase".to_owned()) && overlay.exports.contains_key("root"));
    assert_eq!((overlay.platforms.len(), named("grpc.v1", "images").unwrap().platforms.len()), (1, 0));

    let either = find(&["type==io.containerd.differ.v1", "id==version"]).await;
    assert_eq!(either.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["walking", "version"]);
    let of = |kind: &str, id: &str| {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        Request::new(introspection::PluginInfoRequest { r#type: kind, id, options: None })
    };
    // BuildKit's worker begins only if it finds one.
    let runtimes = find(&["type==io.containerd.runtime.v1", "type==io.containerd.runtime.v2"]).await;
    let [runtime] = &runtimes[..] else { panic!("{runtimes:?}") };
    assert!(runtime.init_err.as_ref().is_some_and(|e| e.message.ends_with("skip plugin")), "{runtime:?}");

    let info = client.plugin_info(of("io.containerd.snapshotter.v1", "overlayfs")).await.unwrap().into_inner();
    assert_eq!(info.plugin.as_ref(), Some(overlay));
    let error = client.plugin_info(of("io.containerd.sandbox.store.v1", "local")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let node = Node::new();
    let mut client = IntrospectionClient::new(node.channel.clone());
    let first = client.server(Request::new(())).await.unwrap().into_inner();
    let second = client.server(Request::new(())).await.unwrap().into_inner();
    assert_eq!((&first.uuid, first.pid), (&second.uuid, u64::from(std::process::id())));
    assert_eq!(first.uuid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    let wanted =
        introspection::PluginsRequest { filters: vec!["type==io.containerd.snapshotter.v1, id==native".into()] };
    let found = client.plugins(Request::new(wanted)).await.unwrap().into_inner().plugins;
    assert_eq!(found.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["native"]);
    assert_eq!(found[0].platforms.len(), 1);
    let version = VersionClient::new(node.channel.clone()).version(Request::new(())).await.unwrap().into_inner();
    let major: u32 = version.version.split('.').next().unwrap().parse().unwrap();
    assert!(major >= 2, "nerdctl and others compare it");
}
