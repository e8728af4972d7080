//! Layers into trees over Diff.Apply, as `ctr` and containerd's unpacker call it.

use crate::common;
use crate::common::image::{GZIP_LAYER, image};
use crate::common::{Node, request};
use bytes::Bytes;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::diff::v1 as pb;
use orlop_api::containerd::services::diff::v1::diff_client::DiffClient;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::types;
use orlop_oci::Digest;
use tonic::{Code, Status};

async fn put(node: &Node, bytes: &[u8]) -> types::Descriptor {
    let message = content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        r#ref: "put".into(),
        data: Bytes::copy_from_slice(bytes),
        ..Default::default()
    };
    let call = ContentClient::new(node.channel.clone()).write(request(tokio_stream::iter([message]))).await;
    call.unwrap().into_inner().message().await.unwrap();
    let digest = Digest::of(bytes).to_string();
    types::Descriptor { media_type: GZIP_LAYER.into(), digest, size: bytes.len() as i64, ..Default::default() }
}

async fn apply(node: &Node, layer: types::Descriptor, mounts: Vec<types::Mount>) -> Result<types::Descriptor, Status> {
    let wanted = pb::ApplyRequest { diff: Some(layer), mounts, sync_fs: true, ..Default::default() };
    let applied = DiffClient::new(node.channel.clone()).apply(request(wanted)).await?;
    Ok(applied.into_inner().applied.unwrap())
}

/// Applies both layers, the second on the first, and returns the mounts of a view of the whole.
async fn unpack(node: &Node, snapshotter: &str) -> Vec<types::Mount> {
    let mut client = SnapshotsClient::new(node.channel.clone());
    let mut parent = String::new();
    for (i, layer) in image().layers().iter().enumerate() {
        let tar = layer.tar();
        let layer = put(node, &layer.bytes()).await;
        let key = format!("active-{i}");
        let wanted = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.clone(),
            parent,
            ..Default::default()
        };
        let mounts = client.prepare(request(wanted)).await.unwrap().into_inner().mounts;
        let applied = apply(node, layer, mounts).await.unwrap();
        assert_eq!((applied.digest, applied.size), (Digest::of(tar).to_string(), tar.len() as i64));
        parent = format!("layer-{i}");
        let wanted = snapshots::CommitSnapshotRequest {
            snapshotter: snapshotter.into(),
            name: parent.clone(),
            key,
            ..Default::default()
        };
        client.commit(request(wanted)).await.unwrap();
    }
    let wanted = snapshots::ViewSnapshotRequest {
        snapshotter: snapshotter.into(),
        key: "view".into(),
        parent,
        ..Default::default()
    };
    client.view(request(wanted)).await.unwrap().into_inner().mounts
}

fn mount(mounts: Vec<types::Mount>, node: &Node) -> Option<orlop_snapshot::TempMount> {
    let mounts: Vec<_> = mounts
        .into_iter()
        .map(|m| orlop_snapshot::Mount { kind: m.r#type, source: m.source, options: m.options })
        .collect();
    match orlop_snapshot::TempMount::new(&mounts, node.directory.path()) {
        Ok(mounted) => Some(mounted),
        Err(error) => {
            eprintln!("skipped: nothing can be mounted here: {error}");
            None
        }
    }
}

#[tokio::test]
async fn layers_stack_to_the_tree_of_the_image() {
    for snapshotter in common::snapshotters() {
        let node = Node::new();
        let mounts = unpack(&node, snapshotter).await;
        let Some(mounted) = mount(mounts, &node) else { return };
        let path = |name: &str| mounted.path().join(name);
        assert!(!path("etc/gone").exists(), "{snapshotter}: the second layer deletes it");
        assert_eq!(std::fs::read_to_string(path("etc/linked")).unwrap(), "kept");
        assert_eq!(std::fs::read_to_string(path("new")).unwrap(), "from the second layer");
    }
}

/// What is not a tree of this store is mounted for the call.
#[tokio::test]
async fn a_layer_is_applied_to_any_directory_that_can_be_mounted() {
    let node = Node::new();
    let foreign = node.directory.path().join("foreign");
    std::fs::create_dir_all(foreign.join("etc")).unwrap();
    std::fs::write(foreign.join("etc/gone"), "old").unwrap();
    let layer = put(&node, &image().layers()[1].bytes()).await;
    let bind = types::Mount {
        r#type: "bind".into(),
        source: foreign.display().to_string(),
        options: vec!["rbind".into(), "rw".into()],
        ..Default::default()
    };
    match apply(&node, layer, vec![bind]).await {
        Ok(_) => {}
        Err(error) if error.code() == Code::PermissionDenied => {
            eprintln!("skipped: nothing can be mounted here: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    assert!(!foreign.join("etc/gone").exists());
    assert!(foreign.join("new").exists());
    let left: Vec<_> = std::fs::read_dir(node.store.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("mount")), "{left:?}");
}

#[tokio::test]
async fn what_cannot_be_applied_is_refused() {
    let node = Node::new();
    let mut client = SnapshotsClient::new(node.channel.clone());
    let wanted = snapshots::PrepareSnapshotRequest { key: "k".into(), ..Default::default() };
    let mounts = client.prepare(request(wanted)).await.unwrap().into_inner().mounts;
    let missing = types::Descriptor { digest: Digest::of(b"missing").to_string(), ..Default::default() };
    assert_eq!(apply(&node, missing, mounts.clone()).await.unwrap_err().code(), Code::NotFound);
    let garbage = put(&node, b"\x1f\x8b this is not gzip").await;
    let error = apply(&node, garbage.clone(), mounts.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let details = orlop_api::error::details(&error).unwrap();
    assert_eq!(details.class, orlop_api::error::Class::Verification);
    let mut read_only = mounts;
    read_only[0].options = vec!["ro".into()];
    assert_eq!(apply(&node, garbage, read_only).await.unwrap_err().code(), Code::InvalidArgument);
}

/// What a tree got on top of its parent comes back as a layer that makes the same tree.
#[tokio::test]
async fn a_layer_is_made_from_two_snapshots() {
    for snapshotter in common::snapshotters() {
        let node = Node::new();
        let Some(_) = mount(unpack(&node, snapshotter).await, &node) else { return };
        let mut client = SnapshotsClient::new(node.channel.clone());
        let view = |key: &str, parent: &str| snapshots::ViewSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
            parent: parent.into(),
            ..Default::default()
        };
        let left = client.view(request(view("left", "layer-0"))).await.unwrap().into_inner().mounts;
        let right = client.view(request(view("right", "layer-1"))).await.unwrap().into_inner().mounts;
        let wanted = pb::DiffRequest {
            left: left.clone(),
            right,
            labels: common::labels(&[("containerd.io/gc.root", "1")]),
            ..Default::default()
        };
        let mut differ = DiffClient::new(node.channel.clone());
        let made = differ.diff(request(wanted.clone())).await.unwrap().into_inner().diff.unwrap();
        assert_eq!(made.media_type, GZIP_LAYER);
        let again = differ.diff(request(wanted.clone())).await.unwrap().into_inner().diff.unwrap();
        assert_eq!(made, again, "the same trees give the same bytes, which may be there");

        let info = content::InfoRequest { digest: made.digest.clone() };
        let info = ContentClient::new(node.channel.clone()).info(request(info)).await.unwrap();
        let labels = info.into_inner().info.unwrap().labels;
        let key = format!("rebuilt-{snapshotter}");
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key,
            parent: "layer-0".into(),
            ..Default::default()
        };
        let mounts = client.prepare(request(prepare)).await.unwrap().into_inner().mounts;
        let applied = apply(&node, made, mounts.clone()).await.unwrap();
        assert_eq!(labels["containerd.io/uncompressed"], applied.digest);
        assert!(labels.contains_key("containerd.io/gc.root"));
        let mounted = mount(mounts, &node).unwrap();
        assert!(!mounted.path().join("etc/gone").exists());
        assert!(mounted.path().join("etc/kept").exists() && mounted.path().join("new").exists());

        let unknown = pb::DiffRequest { media_type: "text/plain".into(), ..wanted };
        assert_eq!(differ.diff(request(unknown)).await.unwrap_err().code(), Code::Unimplemented);
    }
}
