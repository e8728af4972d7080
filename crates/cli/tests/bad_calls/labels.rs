//! Huge labels on every call that takes labels: the bound of containerd, 4096 bytes for a key and its value.

use orlop_api::containerd::services::containers::v1 as containers;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::mounts::v1 as mounts;
use orlop_api::containerd::services::namespaces::v1 as namespaces;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::services::transfer::v1 as transfer;
use orlop_api::containerd::types;
use prost_types::{Any, FieldMask};
use std::collections::BTreeMap;
use tonic::Code;

use crate::deviations::LABELS;
use crate::sides::{Answers, Calls, Ours, Peer, compare};
use crate::values::{CONFIG, any, blob, manifest, target, write};

const SNAPSHOTTER: &str = "native";
const KEY: &str = "containerd.io/gc.root";

type Labels = BTreeMap<String, String>;

fn mask() -> Option<FieldMask> {
    Some(FieldMask { paths: vec!["labels".into()] })
}

/// What is sound is called so; every other call has a label whose key and value have so many bytes together.
async fn labelled(peer: Peer, case: &str, bytes: usize) -> Answers {
    let mut calls = Calls::new(peer).await;
    calls.within = Some(case.to_owned());
    let sound: Labels = [(KEY.to_owned(), "yes".to_owned())].into();
    let big: Labels = [(KEY.to_owned(), "x".repeat(bytes - KEY.len()))].into();
    of_content_and_images(&mut calls, &sound, &big).await;
    of_leases_and_namespaces(&mut calls, &big).await;
    of_snapshots(&mut calls, &sound, &big).await;
    of_containers(&mut calls, &big).await;
    let wanted = mounts::ActivateRequest {
        name: "/mnt/labelled".into(),
        mounts: vec![types::Mount { r#type: "odd/bind".into(), source: "/".into(), ..Default::default() }],
        labels: big.clone(),
        ..Default::default()
    };
    calls.call("activate", "mounts.v1.Mounts/Activate", &wanted).await;
    let store = |name: &str, labels: Labels| {
        Some(any(&types::transfer::ImageStore { name: name.into(), labels, ..Default::default() }))
    };
    let tag = transfer::TransferRequest {
        source: store("old", Labels::new()),
        destination: store("tagged", big),
        options: None,
    };
    calls.call("tag", "transfer.v1.Transfer/Transfer", &tag).await;
    calls.answers
}

async fn of_content_and_images(calls: &mut Calls, sound: &Labels, big: &Labels) {
    calls.call("sound blob", "content.v1.Content/Write", &write("sound", &manifest(), sound.clone())).await;
    calls.call("sound config", "content.v1.Content/Write", &write("config", CONFIG, sound.clone())).await;
    let image = |name: &str, labels: &Labels| images::Image {
        name: name.into(),
        target: target(),
        labels: labels.clone(),
        ..Default::default()
    };
    let create = |image| images::CreateImageRequest { image: Some(image), ..Default::default() };
    calls.call("sound image", "images.v1.Images/Create", &create(image("old", sound))).await;
    calls.call("create image", "images.v1.Images/Create", &create(image("new", big))).await;
    for (name, update_mask) in [("update image", None), ("update labels of image", mask())] {
        let update = images::UpdateImageRequest { image: Some(image("old", big)), update_mask, ..Default::default() };
        calls.call(name, "images.v1.Images/Update", &update).await;
    }
    let info = content::Info { digest: blob(), labels: big.clone(), ..Default::default() };
    for (name, update_mask) in [("update blob", None), ("update labels of blob", mask())] {
        let update = content::UpdateRequest { info: Some(info.clone()), update_mask };
        calls.call(name, "content.v1.Content/Update", &update).await;
    }
    calls.call("commit blob", "content.v1.Content/Write", &write("labelled", b"other", big.clone())).await;
    // A refused commit leaves its write, to be tried again.
    calls
        .call("of the commit: abort", "content.v1.Content/Abort", &content::AbortRequest { r#ref: "labelled".into() })
        .await;
}

async fn of_leases_and_namespaces(calls: &mut Calls, big: &Labels) {
    let lease = leases::CreateRequest { id: "lease".into(), labels: big.clone() };
    calls.call("create lease", "leases.v1.Leases/Create", &lease).await;
    let delete = leases::DeleteRequest { id: "lease".into(), sync: true };
    calls.call("of the lease: delete", "leases.v1.Leases/Delete", &delete).await;
    let namespace =
        |name: &str, labels: &Labels| Some(namespaces::Namespace { name: name.into(), labels: labels.clone() });
    let made = namespaces::CreateNamespaceRequest { namespace: namespace("made", big) };
    calls.call("create namespace", "namespaces.v1.Namespaces/Create", &made).await;
    let made = namespaces::CreateNamespaceRequest { namespace: namespace("sound", &Labels::new()) };
    calls.call("sound namespace", "namespaces.v1.Namespaces/Create", &made).await;
    let by_key = Some(FieldMask { paths: vec![format!("labels.{KEY}")] });
    for (name, update_mask) in [("update namespace", None), ("update a label of namespace", by_key)] {
        let update = namespaces::UpdateNamespaceRequest { namespace: namespace("sound", big), update_mask };
        calls.call(name, "namespaces.v1.Namespaces/Update", &update).await;
    }
}

async fn of_snapshots(calls: &mut Calls, sound: &Labels, big: &Labels) {
    let snapshotter = || SNAPSHOTTER.to_owned();
    let prepare = |key: &str, labels: &Labels| snapshots::PrepareSnapshotRequest {
        snapshotter: snapshotter(),
        key: key.into(),
        labels: labels.clone(),
        ..Default::default()
    };
    calls.call("prepare", "snapshots.v1.Snapshots/Prepare", &prepare("big", big)).await;
    calls.call("sound snapshot", "snapshots.v1.Snapshots/Prepare", &prepare("sound", sound)).await;
    let view = snapshots::ViewSnapshotRequest {
        snapshotter: snapshotter(),
        key: "view".into(),
        labels: big.clone(),
        ..Default::default()
    };
    calls.call("view", "snapshots.v1.Snapshots/View", &view).await;
    let info = snapshots::Info { name: "sound".into(), labels: big.clone(), ..Default::default() };
    for (name, update_mask) in [("update snapshot", None), ("update labels of snapshot", mask())] {
        let update =
            snapshots::UpdateSnapshotRequest { snapshotter: snapshotter(), info: Some(info.clone()), update_mask };
        calls.call(name, "snapshots.v1.Snapshots/Update", &update).await;
    }
    let commit = snapshots::CommitSnapshotRequest {
        snapshotter: snapshotter(),
        name: "done".into(),
        key: "sound".into(),
        labels: big.clone(),
        ..Default::default()
    };
    calls.call("commit snapshot", "snapshots.v1.Snapshots/Commit", &commit).await;
}

async fn of_containers(calls: &mut Calls, big: &Labels) {
    let container = |id: &str, labels: &Labels| {
        Some(containers::Container {
            id: id.into(),
            labels: labels.clone(),
            runtime: Some(containers::container::Runtime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(Any { type_url: "a.Spec".into(), value: Vec::new() }),
            ..Default::default()
        })
    };
    let made = containers::CreateContainerRequest { container: container("big", big) };
    calls.call("create container", "containers.v1.Containers/Create", &made).await;
    let made = containers::CreateContainerRequest { container: container("sound", &Labels::new()) };
    calls.call("sound container", "containers.v1.Containers/Create", &made).await;
    let update = containers::UpdateContainerRequest { container: container("sound", big), update_mask: mask() };
    calls.call("update labels of container", "containers.v1.Containers/Update", &update).await;
}

#[test]
fn labels_have_the_bound_that_containerd_has() {
    for (case, bytes, refused) in
        [("4096 bytes", 4096, false), ("4097 bytes", 4097, true), ("a mebibyte", 1 << 20, true)]
    {
        let mut ours = Ours::start();
        let answers = ours.ask(|peer| labelled(peer, case, bytes));
        if refused {
            for (call, said) in &answers {
                let call = call.strip_prefix(&format!("{case}: ")).unwrap();
                let takes_them = !call.starts_with("sound") && !call.starts_with("of ");
                assert_eq!(
                    said.code != Code::Ok,
                    takes_them || call.starts_with("of the lease"),
                    "{case}: {call}: {said:?}"
                );
                // Half a mebibyte of label does not come back in a message.
                assert!(said.message.len() < 4096, "{case}: {call} says {} bytes", said.message.len());
            }
        }
        // What is sound, and what was made of it if that was allowed: "sound" or "done", "big" and "view".
        ours.holds_only(0, if refused { 1 } else { 3 });
        compare(&answers, LABELS, |peer| labelled(peer, case, bytes));
    }
}
