//! Field masks and filters that mean nothing, or very much, on every call that takes one.

use orlop_api::containerd::services::containers::v1 as containers;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::events::v1 as events;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::introspection::v1 as introspection;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::mounts::v1 as mounts;
use orlop_api::containerd::services::namespaces::v1 as namespaces;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use prost_types::{Any, FieldMask};

use crate::deviations::{FILTERS, MASKS};
use crate::sides::{Answers, Calls, Ours, Peer, compare};
use crate::values::{CONFIG, blob, kept, manifest, target, write};

fn container() -> Option<containers::Container> {
    Some(containers::Container {
        id: "there".into(),
        runtime: Some(containers::container::Runtime { name: "a.b.v1".into(), options: None }),
        spec: Some(Any { type_url: "a.Spec".into(), value: Vec::new() }),
        labels: kept(),
        ..Default::default()
    })
}

fn image() -> images::Image {
    images::Image { name: "there".into(), target: target(), labels: kept(), ..Default::default() }
}

/// One of everything that can be updated and listed.
async fn furnish(calls: &mut Calls) {
    calls.call("blob", "content.v1.Content/Write", &write("blob", &manifest(), kept())).await;
    calls.call("config", "content.v1.Content/Write", &write("config", CONFIG, kept())).await;
    let create = images::CreateImageRequest { image: Some(image()), ..Default::default() };
    calls.call("image", "images.v1.Images/Create", &create).await;
    let create = containers::CreateContainerRequest { container: container() };
    calls.call("container", "containers.v1.Containers/Create", &create).await;
    let namespace = namespaces::Namespace { name: "there".into(), labels: kept() };
    let create = namespaces::CreateNamespaceRequest { namespace: Some(namespace) };
    calls.call("namespace", "namespaces.v1.Namespaces/Create", &create).await;
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: "native".into(),
        key: "there".into(),
        labels: kept(),
        ..Default::default()
    };
    calls.call("snapshot", "snapshots.v1.Snapshots/Prepare", &prepare).await;
}

/// Every call with a mask.
async fn update(calls: &mut Calls, name: &str, paths: &[String]) {
    let update_mask = || Some(FieldMask { paths: paths.to_vec() });
    let request = images::UpdateImageRequest { image: Some(image()), update_mask: update_mask(), ..Default::default() };
    calls.call(&format!("image by {name}"), "images.v1.Images/Update", &request).await;
    let info = Some(content::Info { digest: blob(), labels: kept(), ..Default::default() });
    let request = content::UpdateRequest { info, update_mask: update_mask() };
    calls.call(&format!("blob by {name}"), "content.v1.Content/Update", &request).await;
    let request = containers::UpdateContainerRequest { container: container(), update_mask: update_mask() };
    calls.call(&format!("container by {name}"), "containers.v1.Containers/Update", &request).await;
    let namespace = Some(namespaces::Namespace { name: "there".into(), labels: kept() });
    let request = namespaces::UpdateNamespaceRequest { namespace, update_mask: update_mask() };
    calls.call(&format!("namespace by {name}"), "namespaces.v1.Namespaces/Update", &request).await;
    let info = Some(snapshots::Info { name: "there".into(), labels: kept(), ..Default::default() });
    let request = snapshots::UpdateSnapshotRequest { snapshotter: "native".into(), info, update_mask: update_mask() };
    calls.call(&format!("snapshot by {name}"), "snapshots.v1.Snapshots/Update", &request).await;
    let request = mounts::UpdateRequest { info: None, update_mask: update_mask() };
    calls.call(&format!("mount by {name}"), "mounts.v1.Mounts/Update", &request).await;
}

async fn masks(peer: Peer) -> Answers {
    let mut calls = Calls::new(peer).await;
    furnish(&mut calls).await;
    for path in [
        "",
        ".",
        "..",
        " ",
        "*",
        "labels.",
        ".labels",
        "labels..a",
        "labels.a\0b",
        "Labels",
        "label",
        "no.such",
        "created_at",
        "updated_at",
        "name",
        "id",
        "digest",
        "size",
        "kind",
        "parent",
        "target",
        "target.digest",
        "image",
        "spec",
        "spec.value",
        "runtime",
        "snapshotter",
        "snapshot_key",
        "extensions",
        "extensions.a",
        "extensions.",
        "sandbox",
        "annotations",
        "annotations.a",
    ] {
        update(&mut calls, &format!("{path:?}"), &[path.to_owned()]).await;
    }
    update(&mut calls, "a good and a bad path", &["labels".into(), "no.such".into()]).await;
    update(&mut calls, "ten thousand paths", &vec!["labels.a".to_owned(); 10_000]).await;
    update(&mut calls, "a mebibyte of a path", &[format!("labels.{}", "x".repeat(1 << 20))]).await;
    calls.answers
}

/// Every call with filters.
async fn list(calls: &mut Calls, name: &str, filters: &[String]) {
    let filters = || filters.to_vec();
    let request = content::ListContentRequest { filters: filters() };
    calls.call(&format!("content by {name}"), "content.v1.Content/List", &request).await;
    let request = content::ListStatusesRequest { filters: filters() };
    calls.call(&format!("writes by {name}"), "content.v1.Content/ListStatuses", &request).await;
    let request = images::ListImagesRequest { filters: filters() };
    calls.call(&format!("images by {name}"), "images.v1.Images/List", &request).await;
    let request = leases::ListRequest { filters: filters() };
    calls.call(&format!("leases by {name}"), "leases.v1.Leases/List", &request).await;
    let request = containers::ListContainersRequest { filters: filters() };
    calls.call(&format!("containers by {name}"), "containers.v1.Containers/List", &request).await;
    calls.call(&format!("streamed containers by {name}"), "containers.v1.Containers/ListStream", &request).await;
    let request = snapshots::ListSnapshotsRequest { snapshotter: "native".into(), filters: filters() };
    calls.call(&format!("snapshots by {name}"), "snapshots.v1.Snapshots/List", &request).await;
    let request = introspection::PluginsRequest { filters: filters() };
    calls.call(&format!("plugins by {name}"), "introspection.v1.Introspection/Plugins", &request).await;
    let request = mounts::ListRequest { filters: filters() };
    calls.call(&format!("mounts by {name}"), "mounts.v1.Mounts/List", &request).await;
    let request = namespaces::ListNamespacesRequest { filter: filters().concat() };
    calls.call(&format!("namespaces by {name}"), "namespaces.v1.Namespaces/List", &request).await;
}

/// Filters, and whether they can be read.
const WORDS: [&str; 34] = [
    "",
    " ",
    ",",
    ",,",
    "==",
    "!=",
    "~=",
    "=",
    "name",
    "name=",
    "name==",
    "name==a,",
    ",name==a",
    "name==a,,id==b",
    "name===a",
    "name==a b",
    "name==\"a",
    "name==\"a\"b",
    "name=='a'",
    "name==|a|",
    "name=/a/",
    "name~=(",
    "name~=[",
    "name~=a{1001}",
    "name~=(a*)*b",
    "name~=\"(?P<\"",
    "name~=/a/",
    "labels.",
    "labels.==a",
    "labels.\"a\"==b",
    "labels.\"a==b",
    ".name==a",
    "name.==a",
    "no.such.field==a",
];

async fn filters(peer: Peer) -> Answers {
    let mut calls = Calls::new(peer).await;
    furnish(&mut calls).await;
    for word in WORDS {
        list(&mut calls, &format!("{word:?}"), &[word.to_owned()]).await;
    }
    list(&mut calls, "a good and a bad one", &["name==a".into(), "==".into()]).await;
    list(&mut calls, "ten thousand", &vec!["name==a".to_owned(); 10_000]).await;
    list(&mut calls, "a mebibyte of a value", &[format!("name=={}", "x".repeat(1 << 20))]).await;
    list(&mut calls, "a mebibyte of a path", &[format!("labels.{}==a", "x".repeat(1 << 20))]).await;
    list(&mut calls, "ten thousand words", &[vec!["name==a"; 10_000].join(",")]).await;
    list(&mut calls, "a deep expression", &[format!("name~={}a{}", "(".repeat(900), ")".repeat(900))]).await;
    list(&mut calls, "a huge expression", &[format!("name~={}", "[a-z]{1000}".repeat(200))]).await;
    for word in ["==", "name==\"a"] {
        let request = events::SubscribeRequest { filters: vec![word.to_owned()] };
        calls.call(&format!("events by {word:?}"), "events.v1.Events/Subscribe", &request).await;
    }
    calls.answers
}

#[test]
fn masks_that_mean_nothing_get_containerds_codes() {
    let mut ours = Ours::start();
    let answers = ours.ask(masks);
    compare(&answers, MASKS, masks);
    ours.holds_only(0, 1);
}

#[test]
fn filters_that_mean_nothing_get_containerds_codes() {
    let mut ours = Ours::start();
    let answers = ours.ask(filters);
    compare(&answers, FILTERS, filters);
    ours.holds_only(0, 1);
}
