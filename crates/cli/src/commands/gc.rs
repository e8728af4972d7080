//! `orlop gc`.

use serde::Serialize;

use super::Context;
use crate::client::pb;
use crate::error::Result;
use crate::output::{self, count, size};

/// Options of `gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Collects what no record, lease or label keeps. What `orlop rm` put into the trash stays until --trash.")]
pub(crate) struct Args {
    /// Mark the whole store instead of what changed; finds strays on disk too
    #[arg(long)]
    full: bool,
    /// Empty the trash
    #[arg(long)]
    trash: bool,
    /// Say what would go; change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Collected {
    schema: &'static str,
    dry_run: bool,
    blobs: u64,
    blob_bytes: u64,
    snapshots: u64,
    snapshot_bytes: u64,
    elsewhere_bytes: u64,
    trash_bytes: u64,
    leases: u64,
    ingests: u64,
}

/// Runs `gc`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let request = pb::GcRequest { full: args.full, trash: args.trash, dry_run: args.dry_run };
    let a = context.clients.orlop().gc(request).await?.into_inner();
    if output::is_document(context.global.output) {
        let collected = Collected {
            schema: "orlop.gc/v1",
            dry_run: args.dry_run,
            blobs: a.blobs,
            blob_bytes: a.blob_bytes,
            snapshots: a.snapshots,
            snapshot_bytes: a.snapshot_bytes,
            elsewhere_bytes: a.elsewhere_bytes,
            trash_bytes: a.trash_bytes,
            leases: a.leases,
            ingests: a.ingests,
        };
        return output::document(context.global.output, &collected);
    }
    output::line(format!(
        "{} {} ({}), {} ({}), {} of trash; {}, {}{}",
        if args.dry_run { "would collect" } else { "collected" },
        count(a.blobs, "blob"),
        size(a.blob_bytes),
        count(a.snapshots, "snapshot"),
        size(a.snapshot_bytes),
        size(a.trash_bytes),
        count(a.leases, "expired lease"),
        count(a.ingests, "abandoned write"),
        elsewhere(a.elsewhere_bytes)
    ))
}

/// Says what does not come back.
fn elsewhere(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!("; {} of it stay, files elsewhere have them too", size(bytes)) }
}
