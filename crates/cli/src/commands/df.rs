//! `orlop df`: what takes how much disk.

use serde::Serialize;

use super::Context;
use super::images::Image;
use crate::client::pb;
use crate::error::Result;
use crate::output::{self, Table, size};

/// Options of `df`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HashReferences {
    records: u64,
    content_bytes: u64,
    metadata_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskUsage {
    schema: &'static str,
    total: u64,
    content: u64,
    snapshots: u64,
    ingests: u64,
    trash: u64,
    metadata: u64,
    hash_references: HashReferences,
    images: Vec<Image>,
}

/// Runs `df`.
pub(crate) async fn run(context: &Context, _args: &Args) -> Result<()> {
    let answer = context.clients.orlop().disk_usage(pb::DiskUsageRequest {}).await?.into_inner();
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &json(answer));
    }
    let mut table = Table::new(&["WHAT", "ON DISK"]);
    let rows = [
        ("content (compressed layers, manifests)", answer.content),
        ("snapshots (unpacked layers)", answer.snapshots),
        ("writes in progress", answer.ingests),
        ("trash (orlop gc --trash frees it)", answer.trash),
        ("metadata", answer.metadata),
        ("total", answer.total),
    ];
    for (what, bytes) in rows {
        table.row([what.to_owned(), size(bytes)]);
    }
    table.print()?;
    let hash = answer.hash_references.unwrap_or_default();
    output::line(format!(
        "\n{} hash references: {} of content, {} of metadata",
        hash.records,
        size(hash.content_bytes),
        size(hash.metadata_bytes)
    ))
}

fn json(answer: pb::DiskUsageResponse) -> DiskUsage {
    let hash = answer.hash_references.unwrap_or_default();
    DiskUsage {
        schema: "orlop.df/v1",
        total: answer.total,
        content: answer.content,
        snapshots: answer.snapshots,
        ingests: answer.ingests,
        trash: answer.trash,
        metadata: answer.metadata,
        hash_references: HashReferences {
            records: hash.records,
            content_bytes: hash.content_bytes,
            metadata_bytes: hash.metadata_bytes,
        },
        images: answer.images.into_iter().map(Image::from).collect(),
    }
}
