//! Removals from a store without `orlop.v1`: what identifies one, and how it is done.
//!
//! # The race that is left
//! Each record is looked at once more right before it is deleted. In the moment between, another client may change it.
//! containerd 2.x refuses then, since the deletion says what the record must point at; containerd 1.x does not know that field
//! and deletes. What became reachable meanwhile stays in any case: the store's own collection decides what goes.

use std::collections::BTreeSet;

use orlop_api::containerd::services::images::v1::{DeleteImageRequest, GetImageRequest};
use orlop_api::containerd::types::Descriptor;
use orlop_graph::model::{Model, Node, RecordRow, Removal};
use orlop_oci::Digest;

use super::words::name;
use crate::client::Clients;
use crate::error::{Class, CliError, Result};

/// What a removal is about, as one digest: the records with their targets, and what goes that is not garbage already, for
/// that may go at any time.
pub(crate) fn hash(model: &Model, removal: &Removal) -> Digest {
    let kept = model.kept();
    let mut lines: BTreeSet<String> = BTreeSet::new();
    for node in removal.records.iter().chain(&removal.blobs).chain(&removal.snapshots) {
        if !kept.contains(*node) {
            continue;
        }
        let namespace = model.namespace(model.node(*node).namespace());
        let target = match model.node(*node) {
            Node::Record(row) => row.target.to_string(),
            Node::Snapshot(row) => row.snapshotter.to_string(),
            _ => String::new(),
        };
        lines.insert(format!("{:?} {namespace} {} {target}\n", model.kind(*node), name(model, *node)));
    }
    Digest::of(lines.into_iter().collect::<String>().as_bytes())
}

/// Deletes the records, through clients of their namespace: hash references first, so that a removal that is broken off leaves
/// a name with the rest; the last one waits for the collection.
pub(crate) async fn delete(clients: &Clients, model: &Model, removal: &Removal) -> Result<()> {
    let mut records = removal.records.clone();
    records.sort_by_key(|record| !model.record_kind(*record).is_hash_reference());
    let last = records.len().saturating_sub(1);
    for (at, record) in records.into_iter().enumerate() {
        let Node::Record(row) = model.node(record) else { continue };
        delete_one(clients, row, at == last).await.map_err(|failed| {
            let message = format!("remove {}: {}; {at} of {} records are removed", row.name, failed.message, last + 1);
            CliError { message, ..failed }
        })?;
    }
    Ok(())
}

/// Deletes a record if it still points where it did. One that somebody else removed is as it was to be.
async fn delete_one(clients: &Clients, row: &RecordRow, sync: bool) -> Result<()> {
    let mut images = clients.images();
    let now = match images.get(GetImageRequest { name: row.name.to_string() }).await {
        Ok(answer) => answer.into_inner().image.unwrap_or_default().target.unwrap_or_default().digest,
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    if now != row.target.as_str() {
        return Err(CliError::new(Class::Conflict, format!("it points at {now} now, no longer at {}", row.target)));
    }
    let target = Descriptor {
        media_type: row.media_type.to_string(),
        digest: row.target.to_string(),
        size: row.size as i64,
        ..Descriptor::default()
    };
    let request = DeleteImageRequest { name: row.name.to_string(), sync, target: Some(target) };
    match images.delete(request).await {
        Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}
