//! `orlop mount` and `orlop umount`: an image's file system at a directory.
//!
//! The mount point's canonical path names the snapshot and the lease that keeps it, so that unmounting needs no state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_snapshot::Mount;

use super::Context;
use crate::client::{Clients, pb};
use crate::error::{Class, CliError, Result};
use crate::output::Names;

/// Options of `mount`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  orlop mount alpine:3.20 /mnt
  orlop mount --rw app:1.0 /mnt      changes are kept until orlop umount /mnt")]
pub(crate) struct MountArgs {
    /// The image
    name: String,
    /// Where
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Writable; what is written goes when it is unmounted
    #[arg(long)]
    rw: bool,
    /// overlayfs, erofs or native
    #[arg(long, value_name = "S", default_value = "")]
    snapshotter: String,
}

/// Options of `umount`.
#[derive(Debug, clap::Args)]
pub(crate) struct UmountArgs {
    /// Where
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Names the snapshot and the lease of a mount point.
fn mount_key(dir: &Path) -> String {
    format!("orlop-mount{}", dir.display())
}

/// Runs `mount`.
pub(crate) async fn mount(context: &Context, args: &MountArgs) -> Result<()> {
    let dir = args.dir.canonicalize().map_err(CliError::at("find mount point", &args.dir))?;
    let (chain_id, snapshotter) = top_snapshot(context, args).await?;
    let key = mount_key(&dir);
    let lease = leases::CreateRequest { id: key.clone(), labels: BTreeMap::new() };
    context.clients.leases().create(lease).await.map_err(|status| match status.code() {
        tonic::Code::AlreadyExists => {
            CliError::new(Class::Conflict, format!("{} has an image mounted already", dir.display()))
                .hint(format!("orlop umount {}", dir.display()))
        }
        _ => status.into(),
    })?;
    let result = mount_leased(context, args, &dir, &key, chain_id, &snapshotter).await;
    if result.is_err() {
        clean(context, &key, &snapshotter).await;
    }
    result?;
    tell(context, "orlop.mount/v1", &dir)
}

/// Tells where, to who asked for a name or a document.
fn tell(context: &Context, schema: &'static str, dir: &Path) -> Result<()> {
    Names::one_quietly(context.global.output, schema, dir.display().to_string())
}

async fn top_snapshot(context: &Context, args: &MountArgs) -> Result<(String, String)> {
    let request = pb::InspectRequest { name: args.name.clone() };
    let answer = context.clients.orlop().inspect(request).await?.into_inner();
    let wanted = |s: &&pb::SnapshotRow| args.snapshotter.is_empty() || s.snapshotter == args.snapshotter;
    let top = answer.snapshots.iter().rfind(wanted).ok_or_else(|| {
        CliError::new(Class::NotFound, format!("{}: not unpacked: it has no snapshot to mount", args.name))
            .hint(format!("orlop pull {}", args.name))
    })?;
    Ok((top.chain_id.clone(), top.snapshotter.clone()))
}

async fn mount_leased(
    context: &Context,
    args: &MountArgs,
    dir: &Path,
    key: &str,
    parent: String,
    snapshotter: &str,
) -> Result<()> {
    let leased: Clients = context.clients.with_lease(key)?;
    let snapshotter = snapshotter.to_owned();
    let mounts = if args.rw {
        let request =
            snapshots::PrepareSnapshotRequest { snapshotter, key: key.to_owned(), parent, labels: BTreeMap::new() };
        leased.snapshots().prepare(request).await?.into_inner().mounts
    } else {
        let request =
            snapshots::ViewSnapshotRequest { snapshotter, key: key.to_owned(), parent, labels: BTreeMap::new() };
        leased.snapshots().view(request).await?.into_inner().mounts
    };
    let mounts: Vec<Mount> =
        mounts.into_iter().map(|m| Mount { kind: m.r#type, source: m.source, options: m.options }).collect();
    orlop_snapshot::mount_all(&mounts, dir).map_err(snapshot_error)
}

/// Best effort: the error that led here is the one to report.
async fn clean(context: &Context, key: &str, snapshotter: &str) {
    let remove = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    let _ = context.clients.snapshots().remove(remove).await;
    let _ = context.clients.leases().delete(leases::DeleteRequest { id: key.to_owned(), sync: true }).await;
}

fn snapshot_error(error: orlop_snapshot::Error) -> CliError {
    let class = match &error {
        orlop_snapshot::Error::Io { source, .. } => crate::error::class_of_io(source),
        orlop_snapshot::Error::Unsupported { .. } => Class::NotPermitted,
        _ => Class::Failed,
    };
    CliError::new(class, error.to_string())
}

/// Runs `umount`.
pub(crate) async fn umount(context: &Context, args: &UmountArgs) -> Result<()> {
    let dir = args.dir.canonicalize().map_err(CliError::at("find mount point", &args.dir))?;
    let key = mount_key(&dir);
    let request = leases::ListResourcesRequest { id: key.clone() };
    let held = context.clients.leases().list_resources(request).await.map_err(|status| match status.code() {
        tonic::Code::NotFound => {
            CliError::new(Class::NotFound, format!("{} has no image that orlop mounted", dir.display()))
        }
        _ => status.into(),
    })?;
    match orlop_snapshot::unmount(&dir) {
        // Not mounted: the machine was started since, or mounting failed and the rest could not be taken away.
        Err(orlop_snapshot::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::InvalidInput => {}
        unmounted => unmounted.map_err(snapshot_error)?,
    }
    for resource in held.into_inner().resources {
        if let Some(snapshotter) = resource.r#type.strip_prefix("snapshots/") {
            let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: resource.id };
            match context.clients.snapshots().remove(request).await {
                Err(status) if status.code() == tonic::Code::NotFound => {}
                removed => drop(removed?),
            }
        }
    }
    context.clients.leases().delete(leases::DeleteRequest { id: key, sync: true }).await?;
    tell(context, "orlop.umount/v1", &dir)
}
