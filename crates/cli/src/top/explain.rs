//! A row in more words: what each name is, what keeps it, what it costs, what deleting it would do. Pure.

use orlop_graph::model::{Cost, Model, Node, NodeId, NodeKind, Root};
use orlop_oci::Kind;

use super::data::{Data, ImageRow, LayerRow, clean, layers_of};
use crate::output::{count, short, size};

/// Keepers that are named; of more only the number.
const NAMED: usize = 12;

/// Explains an image.
pub(crate) fn image(data: &Data, row: &ImageRow) -> Vec<String> {
    let model = &data.model;
    let mut lines = vec![format!("{}, namespace {}", row.name, row.namespace), String::new()];
    lines.push("Its names; all point at one target and cost nothing but the record:".into());
    for record in &row.records {
        let Node::Record(named) = model.node(*record) else { continue };
        lines.push(format!("  {}", clean(&named.name)));
        lines.push(format!("      {}", kind(model.record_kind(*record))));
    }
    let Some(Node::Record(first)) = row.records.first().map(|record| model.node(*record)) else { return lines };
    lines.push(String::new());
    lines.push(format!("Target: {} ({})", first.target, clean(&first.media_type)));
    let layers = layers_of(model, &row.records).len();
    lines.push(format!(
        "Takes: {} compressed in {}, {} unpacked{}",
        size(row.size.compressed),
        count(layers as u64, "layer"),
        size(row.size.unpacked),
        if row.size.unmeasured > 0 { " (not all measured yet)" } else { "" }
    ));
    lines.push(format!(
        "  of it {} shared with other images, {} its own",
        size(row.size.shared),
        size(row.size.unique)
    ));
    if row.size.missing > 0 {
        lines.push(format!("  {} of its blobs are not here (other platforms, or a pull in part)", row.size.missing));
    }
    let cost = model.cost(&row.records);
    lines.push(String::new());
    lines.push(freed(&cost));
    if row.records.len() > 1 {
        lines.push("Deleting one of them alone frees nothing: the others point at the same".into());
    }
    used(model, row, &mut lines);
    elsewhere(model, row, &mut lines);
    lines
}

/// Explains a layer.
pub(crate) fn layer(data: &Data, row: &LayerRow) -> Vec<String> {
    let model = &data.model;
    let mut lines = vec![format!("Layer {}", row.digest), String::new()];
    lines.push(format!("{} compressed; kept once, whoever uses it", size(row.bytes)));
    lines.push(format!("In {}:", count(row.images.len() as u64, "image")));
    lines.extend(row.images.iter().map(|name| format!("  {name}")));
    lines.push(String::new());
    lines.push("What keeps it on disk; it goes when all of these are gone:".into());
    let keepers = model.keepers(row.blob);
    lines.extend(keepers.iter().take(NAMED).map(|keeper| format!("  {}", keeper_words(model, *keeper))));
    if keepers.len() > NAMED {
        lines.push(format!("  and {} more", keepers.len() - NAMED));
    }
    if keepers.is_empty() {
        lines.push("  nothing: the next garbage collection takes it".into());
    }
    lines
}

/// What a kind of record is.
const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Tag => "a name: what was asked for",
        Kind::Digest => "a hash reference: the same by the digest of its manifest",
        Kind::Id => "a hash reference: the same by the digest of its config, the image ID",
        Kind::Other => "a name as some client wrote it",
    }
}

fn freed(cost: &Cost) -> String {
    let unknown = if cost.alone.unmeasured > 0 { " and what is not measured yet" } else { "" };
    format!("Deleting all its names frees {}{unknown}", size(cost.alone.bytes()))
}

fn used(model: &Model, row: &ImageRow, lines: &mut Vec<String>) {
    let users = model.users(&row.records);
    if users.is_empty() {
        lines.push("No container stands on it".into());
    }
    for user in users.iter().take(NAMED) {
        lines.push(format!("  {} stands on it", keeper_words(model, *user)));
    }
    if users.len() > NAMED {
        lines.push(format!("  and {} more", users.len() - NAMED));
    }
    if row.pinned {
        lines.push("It is pinned: kubelet does not remove it".into());
    }
}

/// Its names in other namespaces, which keep the bytes too.
fn elsewhere(model: &Model, row: &ImageRow, lines: &mut Vec<String>) {
    let Some(first) = row.records.first() else { return };
    let others = model.family(*first).into_iter().filter(|record| !row.records.contains(record));
    for other in others {
        lines.push(format!("  {} is the same image and keeps its bytes too", keeper_words(model, other)));
    }
}

fn keeper_words(model: &Model, node: NodeId) -> String {
    let namespace = model.namespace(model.node(node).namespace());
    let what = match model.node(node) {
        Node::Record(row) => clean(&row.name),
        Node::Lease(row) => format!("lease {}", clean(&row.id)),
        Node::Container(row) => format!("container {}", clean(&row.id)),
        Node::Ingest(row) => format!("write in progress {}", clean(&row.reference)),
        Node::Blob(row) if model.root(node) == Some(Root::Label) => {
            format!("its label gc.root on blob {}", short(row.digest.as_str()))
        }
        Node::Snapshot(row) => format!("snapshot {}", clean(&row.key)),
        Node::Blob(row) => format!("blob {}", short(row.digest.as_str())),
        Node::Missing(_) => "something that is not there".into(),
    };
    debug_assert_ne!(model.kind(node), NodeKind::Missing, "nothing that is missing keeps anything");
    format!("{what} ({namespace})")
}
