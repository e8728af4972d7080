//! Results of `orlop-image` and the store as messages.

use orlop_api::orlop::v1 as pb;
use orlop_image as image;
use orlop_metadata::{HistoryEntry, TrashEntry, UndoReport};
use orlop_oci::{Descriptor, Digest, Platform};

use crate::convert::timestamp;

pub(super) fn descriptor(descriptor: &Descriptor) -> pb::Descriptor {
    pb::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: text(&descriptor.digest),
        size: descriptor.size,
    }
}

/// What formatting would give, sooner.
fn text(digest: &Digest) -> String {
    digest.as_str().to_owned()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

pub(super) fn image(row: image::ImageRow) -> pb::ImageRow {
    pb::ImageRow {
        image_id: row.image_id.map(|id| text(id.digest())).unwrap_or_default(),
        namespace: row.namespace,
        names: row.names,
        hash_references: row.hash_references,
        targets: row.targets.iter().map(text).collect(),
        platforms: texts(&row.platforms),
        pinned: row.pinned,
        size: Some(sizes(row.size)),
        created_at: Some(timestamp(row.created_at)),
        updated_at: Some(timestamp(row.updated_at)),
        incomplete: row.incomplete,
    }
}

fn sizes(sizes: image::Sizes) -> pb::Sizes {
    pb::Sizes { compressed: sizes.compressed, unpacked: sizes.unpacked, shared: sizes.shared, unique: sizes.unique }
}

/// A record; if it is to be brief, without what a table does not show.
pub(super) fn record(row: image::RecordRow, brief: bool) -> pb::RecordRow {
    let mut record = pb::RecordRow {
        name: row.name,
        namespace: row.namespace,
        kind: row.kind.as_str().to_owned(),
        target: Some(pb::Descriptor {
            media_type: row.target.media_type,
            digest: text(&row.target.digest),
            size: row.target.size,
        }),
        size: row.size,
        platforms: texts(&row.platforms),
        ..pb::RecordRow::default()
    };
    if !brief {
        record.image_id = row.image_id.map(|id| text(id.digest())).unwrap_or_default();
        record.labels = (*row.labels).clone();
        record.created_at = Some(timestamp(row.created_at));
        record.updated_at = Some(timestamp(row.updated_at));
    }
    record
}

pub(super) fn document(row: image::DocumentRow) -> pb::Document {
    pb::Document {
        descriptor: Some(descriptor(&row.descriptor)),
        raw: row.raw,
        platform: row.platform.as_ref().map(Platform::to_string).unwrap_or_default(),
        missing: row.missing,
    }
}

pub(super) fn snapshot(row: image::SnapshotRow) -> pb::SnapshotRow {
    pb::SnapshotRow { chain_id: row.chain_id, snapshotter: row.snapshotter, bytes: row.bytes, inodes: row.inodes }
}

pub(super) fn change(entry: HistoryEntry) -> pb::HistoryRow {
    let verified_by = entry.new.as_ref().map(|target| image::verified_by(target, &entry.labels)).unwrap_or_default();
    pb::HistoryRow {
        seq: entry.seq,
        at: Some(timestamp(entry.at)),
        actor: entry.actor,
        action: entry.action.as_str().to_owned(),
        namespace: entry.namespace,
        name: entry.name,
        old_target: entry.old.map(|d| d.to_string()).unwrap_or_default(),
        new_target: entry.new.map(|d| d.to_string()).unwrap_or_default(),
        host: entry.host.unwrap_or_default(),
        verified_by,
    }
}

pub(super) fn plan(plan: image::Plan) -> pb::Plan {
    let reasons = |reasons: Vec<image::Reason>| {
        reasons.into_iter().map(|r| pb::Reason { name: r.name, reason: r.reason }).collect()
    };
    pb::Plan {
        plan: plan.hash,
        freed_now: plan.freed_now,
        freed_when_trash_empties: plan.freed_when_trash_empties,
        records: plan.records,
        blobs: plan.blobs.iter().map(descriptor).collect(),
        snapshots: plan.snapshots.into_iter().map(snapshot).collect(),
        returns: reasons(plan.returns),
        unpullable: reasons(plan.unpullable),
        in_use: reasons(plan.in_use),
        elsewhere: plan.elsewhere,
    }
}

pub(super) fn trash(entry: TrashEntry) -> pb::TrashRow {
    pb::TrashRow {
        id: entry.id,
        created_at: Some(timestamp(entry.created_at)),
        reason: entry.reason,
        bytes: entry.bytes,
        names: entry.images.into_iter().map(|(_, name)| name).collect(),
    }
}

pub(super) fn undone(report: UndoReport) -> pb::UndoResponse {
    pb::UndoResponse {
        names: report.images.into_iter().map(|(_, name)| name).collect(),
        kept: report.kept.into_iter().map(|(_, name)| name).collect(),
        blobs: report.blobs as u64,
        snapshots: report.snapshots as u64,
        missing: report.missing.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn collected(outcome: image::GcOutcome) -> pb::GcResponse {
    pb::GcResponse {
        blobs: outcome.blobs,
        blob_bytes: outcome.blob_bytes,
        snapshots: outcome.snapshots,
        snapshot_bytes: outcome.snapshot_bytes,
        trash_bytes: outcome.trash_bytes,
        leases: outcome.leases,
        ingests: outcome.ingests,
        elsewhere_bytes: outcome.elsewhere_bytes,
    }
}

pub(super) fn usage(usage: image::DiskUsage) -> pb::DiskUsageResponse {
    pb::DiskUsageResponse {
        total: usage.total,
        content: usage.content,
        snapshots: usage.snapshots,
        ingests: usage.ingests,
        trash: usage.trash,
        metadata: usage.metadata,
        hash_references: Some(pb::HashReferenceUsage {
            records: usage.hash_references.records,
            content_bytes: usage.hash_references.content_bytes,
            metadata_bytes: usage.hash_references.metadata_bytes,
        }),
        images: usage.images.into_iter().map(image).collect(),
        quarantine: usage.quarantine,
        elsewhere: usage.elsewhere,
    }
}
