//! What only bytes tell: blobs that fail their digest, and files of snapshots that lost their content (`trees`).

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use orlop_graph::model::{Class, Facts, Finding, Mend, Model, Node, NodeId, NodeKind, Weight};
use orlop_lens::Bytes;
use orlop_oci::Digest;

use super::{Args, Found};
use crate::commands::Context;
use crate::error::Result;
use crate::look::{Look, Source};
use crate::output::{count, size};

/// Blobs that are hashed at the same time: a disk is busy with few, and a containerd has other clients.
const AT_ONCE: usize = 4;

/// Everything that is wanted of this.
pub(super) async fn examine(context: &Context, args: &Args, look: &Look, facts: &Facts) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    // On Orlop's own store `check --deep` hashes.
    if args.wants(Class::Damaged) && !context.store.is_own() {
        found.extend(damaged(context, look).await?);
    }
    if args.wants(Class::ZeroLength) && !context.store.is_own() {
        found.extend(super::trees::examine(context, &look.model, facts).await?);
    }
    Ok(found)
}

/// Blobs that are listed and whose files are gone: of a store that is only files that is known without reading any.
pub(super) fn without_files(look: &Look) -> Vec<Found> {
    let (Source::Files(_, stored), model) = (&look.reader, &look.model) else { return Vec::new() };
    let blobs = stored.absent.iter().filter_map(|digest| model.copies(digest).next());
    let found = |blob| {
        let mut found = failing(model, blob, Bytes::Unreadable("its file is gone".into()))?;
        found.finding.frees = Weight::default();
        Some(found)
    };
    blobs.filter_map(found).collect()
}

/// Blobs whose bytes are not those of their digest; each digest is read once.
async fn damaged(context: &Context, look: &Look) -> Result<Vec<Found>> {
    let model = &look.model;
    let Source::Api(reader, _) = &look.reader else {
        context.say(
            "unknown: whether blobs have the bytes of their digests: that needs a server, and these are only files",
        );
        return Ok(Vec::new());
    };
    let mut blobs: BTreeMap<&Digest, (NodeId, u64)> = BTreeMap::new();
    for blob in model.nodes(NodeKind::Blob) {
        if let Node::Blob(row) = model.node(blob) {
            blobs.entry(&row.digest).or_insert((blob, row.size));
        }
    }
    let total: u64 = blobs.values().map(|(_, size)| size).sum();
    context.say(format!("reading {}, {}", count(blobs.len() as u64, "blob"), size(total)));
    let bar = bar(context, total);
    let reads = blobs.into_iter().map(|(digest, (blob, _))| {
        let (bar, reader) = (bar.clone(), reader.clone());
        async move {
            let namespace = model.namespace(model.node(blob).namespace());
            let bytes = reader.hash(namespace, digest, |read| bar.inc(read)).await?;
            Ok::<_, orlop_lens::Error>((blob, bytes))
        }
    });
    let read: Vec<(NodeId, Bytes)> = stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await?;
    bar.finish_and_clear();
    let mut found: Vec<Found> = read.into_iter().filter_map(|(blob, bytes)| failing(model, blob, bytes)).collect();
    found.sort_by_key(|found| found.finding.subject);
    Ok(found)
}

fn failing(model: &Model, subject: NodeId, bytes: Bytes) -> Option<Found> {
    let detail = match bytes {
        Bytes::Other(digest) => format!("its bytes hash to {digest}"),
        Bytes::Unreadable(why) => format!("it is listed and cannot be read: {why}"),
        _ => return None,
    };
    let things: Vec<NodeId> = match model.node(subject) {
        Node::Blob(row) => model.copies(&row.digest).collect(),
        _ => vec![subject],
    };
    let frees = model.weigh([subject]);
    let mend = Mend::Remove(things.clone());
    Some(Found {
        finding: Finding { class: Class::Damaged, subject, things, frees, mend },
        detail: Some(detail),
        target: None,
    })
}

/// How far reading is, on a terminal.
pub(super) fn bar(context: &Context, total: u64) -> ProgressBar {
    if context.global.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
