//! What a thing is, in words, and who wrote it.

use orlop_graph::model::{MANAGED, Model, Node, NodeId, NodeKind, Role, SOURCE, SnapshotKind, UNCOMPRESSED, Why};
use orlop_image::GC_EXPIRE;
use orlop_oci::Kind;
use serde::Serialize;

use crate::client::pb;
use crate::commands::Context;
use crate::find::places::KUBERNETES;
use crate::look::words::{self, abbreviated, called};
use crate::output::{count, size};

/// Who wrote a record.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Author {
    pub(crate) who: String,
    /// Concluded from labels, since nobody keeps a record of it.
    pub(crate) inferred: bool,
}

/// Who wrote a record: Orlop's history knows; elsewhere its labels tell what they tell.
pub(crate) async fn author(context: &Context, model: &Model, node: NodeId) -> Option<Author> {
    let Node::Record(row) = model.node(node) else { return None };
    if context.store.is_own() && model.namespace(row.namespace) == context.store.namespace {
        let request = pb::HistoryRequest { name: row.name.to_string(), limit: 1 };
        let mut rows = context.clients.orlop().history(request).await.ok()?.into_inner();
        let row = rows.message().await.ok()??.rows.into_iter().next()?;
        return Some(Author { who: row.actor, inferred: false });
    }
    let who = match row.labels.get(MANAGED) {
        Some(_) => "containerd's CRI plugin, whose label it has",
        None => "a client that leaves no label: ctr, nerdctl, Docker, BuildKit",
    };
    Some(Author { who: who.into(), inferred: true })
}

/// What is wrong with an image, if anything is.
pub(crate) fn trouble(model: &Model, record: NodeId, siblings: &[NodeId], unused: bool) -> Option<String> {
    let target = model.references(record).find(|edge| edge.why == Why::Target)?.node;
    let is_here = |node: &NodeId| model.kind(*node) != NodeKind::Missing;
    let lacks = |manifest: NodeId| {
        let parts = model.layers(manifest).into_iter().chain(model.config(manifest));
        parts.filter(|part| !is_here(part)).count() as u64
    };
    if !is_here(&target) {
        return Some("its content is not here: nothing can run from it; pull it again".into());
    }
    let manifests: Vec<NodeId> = match model.role(target) {
        Role::Index => model.manifests(target).into_iter().filter(is_here).collect(),
        _ => vec![target],
    };
    if manifests.is_empty() {
        return Some("of no platform is anything here: nothing can run from it; pull it again".into());
    }
    if let Some(least) = manifests.into_iter().map(lacks).min().filter(|least| *least > 0) {
        return Some(format!("incomplete: {} of it are not here; pull it again", count(least, "blob")));
    }
    let is_tag = |node: &NodeId| !model.record_kind(*node).is_hash_reference();
    if siblings.iter().any(is_tag) {
        return None;
    }
    let bytes = size(model.cost(siblings).alone.bytes());
    let used = if unused { "no container uses it" } else { "containers use it" };
    Some(format!(
        "no tag is left, or it was pulled by digest: its {} alone keep {bytes}, and {used}",
        count(siblings.len() as u64, "hash reference")
    ))
}

/// What it is, and why it is there where people ask.
pub(crate) fn of(context: &Context, model: &Model, node: NodeId) -> (String, Option<String>) {
    match model.node(node) {
        Node::Record(_) => record(context, model, node),
        Node::Blob(row) => (blob(model, node, row), source(&row.labels)),
        Node::Snapshot(row) => (snapshot(model, node, row), None),
        Node::Lease(row) => {
            let listed = count(row.resources.len() as u64, "thing");
            let until = match row.labels.get(GC_EXPIRE) {
                Some(time) => format!("until {time}"),
                None => "until somebody deletes it".into(),
            };
            (format!("a lease: it keeps what it lists ({listed}) from being collected, {until}"), None)
        }
        Node::Ingest(row) => {
            let of = if row.total > 0 { format!(" of {}", size(row.total)) } else { String::new() };
            (format!("a write in progress, or one that was left: {}{of} are there", size(row.offset)), None)
        }
        Node::Container(row) => (
            format!(
                "a container's record, made from {}; its file system is the snapshot {}",
                row.image,
                abbreviated(&row.snapshot_key)
            ),
            None,
        ),
        Node::Missing(_) => ("named by something and not in this store".into(), None),
    }
}

fn record(context: &Context, model: &Model, node: NodeId) -> (String, Option<String>) {
    let target = model.references(node).next().map_or(Role::Other, |edge| match model.kind(edge.node) {
        NodeKind::Blob => model.role(edge.node),
        _ => Role::Other,
    });
    let target = match target {
        Role::Other => "content",
        known => words::role(known),
    };
    match model.record_kind(node) {
        Kind::Tag => (
            format!(
                "a tag: a name that somebody gave to an image. It is an image record that points at the image's {target}, and can be moved"
            ),
            None,
        ),
        Kind::Digest => {
            let what = format!(
                "a hash reference NAME@DIGEST: an image record that names the image by the digest of its {target}. It is a name, not a copy"
            );
            (what, Some(why_hash(context, "so that a pod that asks for NAME@DIGEST finds exactly this image")))
        }
        Kind::Id => {
            let what = "a hash reference, the image ID: an image record named by the digest of the image's config. It is a name, not a copy".into();
            (what, Some(why_hash(context, "because the kubelet and crictl know images by their ID")))
        }
        Kind::Other => (format!("an image record with a name that is no image reference; it points at {target}"), None),
    }
}

fn why_hash(context: &Context, purpose: &str) -> String {
    let managed = context.store.namespace == KUBERNETES;
    match (context.store.is_own(), managed) {
        (true, true) => {
            format!("Orlop keeps it beside every name of an image in {KUBERNETES}, as containerd's CRI does, {purpose}")
        }
        (_, true) => format!(
            "containerd's CRI plugin writes it beside the tag whenever an image is pulled through it, {purpose}"
        ),
        _ => "a client made it: outside the kubelet's namespace nothing writes hash references by itself".into(),
    }
}

fn blob(model: &Model, node: NodeId, row: &orlop_graph::model::BlobRow) -> String {
    let bytes = size(row.size);
    match model.role(node) {
        Role::Index => format!(
            "an index ({bytes}): it lists {} of one image for several platforms",
            count(model.manifests(node).len() as u64, "manifest")
        ),
        Role::Manifest => format!(
            "a manifest ({bytes}): one platform's image, its config and {}",
            count(model.layers(node).len() as u64, "layer")
        ),
        Role::Config => format!("an image's config ({bytes}); its digest is the image ID"),
        Role::Layer => {
            let diff = row.labels.get(UNCOMPRESSED).map(|id| format!("; unpacked its digest is {id} (the diff ID)"));
            format!("a layer as it was pulled, {bytes}{}", diff.unwrap_or_default())
        }
        Role::Other => format!("a blob of {bytes}; no label tells what it is for"),
    }
}

fn source(labels: &orlop_graph::model::Labels) -> Option<String> {
    let from: Vec<String> =
        labels.starting(SOURCE).map(|(key, repositories)| format!("{}/{repositories}", &key[SOURCE.len()..])).collect();
    (!from.is_empty()).then(|| format!("it came from {}", from.join(", ")))
}

fn snapshot(model: &Model, node: NodeId, row: &orlop_graph::model::SnapshotRow) -> String {
    let usage = row
        .usage
        .map_or("of unknown size".into(), |usage| format!("{} in {}", size(usage.bytes), count(usage.inodes, "inode")));
    let depth = model.downwards(node).count() as u64;
    match row.kind {
        SnapshotKind::Committed => format!(
            "an unpacked layer, number {depth} from the bottom, kept by {}: {usage} without those below. Its key is the chain ID",
            row.snapshotter
        ),
        SnapshotKind::Active => {
            let user = model.referrers(node).find(|edge| edge.why == Why::RootFs).map(|edge| called(model, edge.node));
            let whose = user.map_or("that no container of this store names".into(), |user| format!("of {user}"));
            format!("a writable file system {whose}, kept by {}: {usage} without the layers below", row.snapshotter)
        }
        SnapshotKind::View => format!("a read-only view of an image, kept by {}", row.snapshotter),
        SnapshotKind::Unknown => format!("a snapshot of {} of which nobody says what it is: {usage}", row.snapshotter),
    }
}
