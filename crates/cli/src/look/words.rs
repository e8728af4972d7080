//! Words for nodes.

use std::sync::Arc;

use orlop_graph::model::{Labels, Model, NamespaceId, Node, NodeId, NodeKind, Resource, Role, Root, SnapshotKind, Why};
use orlop_oci::Kind;

use crate::output::short;
use crate::paint::plain;

/// What a node is called.
pub(crate) fn name(model: &Model, node: NodeId) -> String {
    match model.node(node) {
        Node::Record(row) => row.name.to_string(),
        Node::Blob(row) => row.digest.to_string(),
        Node::Snapshot(row) => row.key.to_string(),
        Node::Lease(row) => row.id.to_string(),
        Node::Ingest(row) => row.reference.to_string(),
        Node::Container(row) => row.id.to_string(),
        Node::Missing(missing) => match &missing.resource {
            Resource::Content(digest) => digest.to_string(),
            Resource::Ingest(name) | Resource::Image(name) => name.to_string(),
            Resource::Snapshot { key, .. } => key.to_string(),
            Resource::Other { id, .. } => id.to_string(),
            other => format!("{other:?}"),
        },
    }
}

/// The same as it may stand in a line.
pub(crate) fn shown(model: &Model, node: NodeId) -> String {
    plain(&name(model, node)).into_owned()
}

/// A snapshot's place.
pub(crate) fn place(model: &Model, node: NodeId) -> Option<(NamespaceId, Arc<str>, Arc<str>)> {
    match model.node(node) {
        Node::Snapshot(row) => Some((row.namespace, row.snapshotter.clone(), row.key.clone())),
        _ => None,
    }
}

/// The kind in one word, as JSON has it.
pub(crate) fn kind(model: &Model, node: NodeId) -> &'static str {
    match model.kind(node) {
        NodeKind::Record => "record",
        NodeKind::Blob => "blob",
        NodeKind::Snapshot => "snapshot",
        NodeKind::Lease => "lease",
        NodeKind::Ingest => "ingest",
        NodeKind::Container => "container",
        NodeKind::Missing => "missing",
    }
}

/// A blob's role in one word.
pub(crate) const fn role(role: Role) -> &'static str {
    match role {
        Role::Index => "index",
        Role::Manifest => "manifest",
        Role::Config => "config",
        Role::Layer => "layer",
        Role::Other => "blob",
    }
}

/// A node in a few words: `tag docker.io/library/alpine:3.20`, `layer sha256:0123…`.
pub(crate) fn called(model: &Model, node: NodeId) -> String {
    let name = shown(model, node);
    match model.node(node) {
        Node::Record(_) => match model.record_kind(node) {
            Kind::Tag | Kind::Other => format!("name {name}"),
            Kind::Digest | Kind::Id => format!("hash reference {}", abbreviated(&name)),
        },
        Node::Blob(_) => format!("{} {}", role(model.role(node)), short(&name)),
        Node::Snapshot(row) => {
            let kind = match row.kind {
                SnapshotKind::Committed | SnapshotKind::Unknown => "snapshot",
                SnapshotKind::Active => "active snapshot",
                SnapshotKind::View => "view",
            };
            format!("{kind} {}", abbreviated(&name))
        }
        Node::Lease(_) => format!("lease {name}"),
        Node::Ingest(_) => format!("write in progress {}", abbreviated(&name)),
        Node::Container(row) => container(&row.labels, &name),
        Node::Missing(missing) => match missing.resource {
            Resource::Snapshot { .. } => format!("snapshot {}, which is not here", abbreviated(&name)),
            _ => format!("{}, which is not here", abbreviated(&name)),
        },
    }
}

/// A container as the kubelet knows it, if it is one of the kubelet's.
fn container(labels: &Labels, id: &str) -> String {
    let id = abbreviated(id);
    let (pod, namespace) = (labels.get("io.kubernetes.pod.name"), labels.get("io.kubernetes.pod.namespace"));
    let Some(pod) = pod else { return format!("container {id}") };
    let pod = namespace.map_or_else(|| pod.to_owned(), |namespace| format!("{namespace}/{pod}"));
    let text = match labels.get("io.kubernetes.container.name") {
        Some(name) => format!("container {name} of pod {pod} ({id})"),
        None => format!("sandbox of pod {pod} ({id})"),
    };
    plain(&text).into_owned()
}

/// Digests shortened, wherever they stand in a name.
pub(crate) fn abbreviated(name: &str) -> String {
    let Some(at) = name.find("sha256:") else {
        // Containers' IDs.
        let hex = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        return if hex { name[..12].to_owned() } else { name.to_owned() };
    };
    let (before, digest) = name.split_at(at);
    let digits = digest["sha256:".len()..].bytes().take_while(u8::is_ascii_hexdigit).count();
    let (digest, after) = digest.split_at("sha256:".len() + digits.min(64));
    format!("{before}{}{after}", short(digest))
}

/// What one thing has to do with the one below, as a verb that takes that one: `points at`, `has as layer 3`.
pub(crate) fn reason(why: Why<'_>) -> String {
    match why {
        Why::Target => "points at".into(),
        Why::Parent => "lies on".into(),
        Why::Resource => "lists".into(),
        Why::RootFs => "runs on".into(),
        Why::Expected => "is to become".into(),
        Why::Condition(key) => format!("names while a condition holds, by the label {key}"),
        Why::Label(key) | Why::BackLabel(key) => match part(key) {
            Some(part) => part,
            None => format!("names by the label {key}"),
        },
    }
}

/// What a label says in words.
fn part(key: &str) -> Option<String> {
    let what = key.strip_prefix("containerd.io/gc.ref.")?;
    let numbered = |prefix: &str| what.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok());
    if let Some(number) = numbered("content.l.") {
        return Some(format!("has as layer {}", number.saturating_add(1)));
    }
    if let Some(number) = numbered("content.m.") {
        return Some(format!("has as manifest {}", number.saturating_add(1)));
    }
    match what {
        "content.config" => Some("has as config".into()),
        _ => what.strip_prefix("snapshot.").map(|snapshotter| format!("is unpacked by {snapshotter} as")),
    }
}

/// Why a root is one.
pub(crate) const fn root(root: Root) -> &'static str {
    match root {
        Root::Record => "image record",
        Root::Container => "container",
        Root::Lease => "lease",
        Root::Label => "label containerd.io/gc.root",
        Root::Owner => "containerd above",
        Root::Ingest => "write in progress",
    }
}
