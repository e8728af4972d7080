//! containerd.services.diff.v1.
//!
//! A tree of one of the store's own drivers is found by its mounts and written without being mounted: the driver's
//! commit then settles what refers to the layers below. Any other tree is mounted for the time of the call.

use std::path::{Component, Path};

use orlop_api::containerd::services::diff::v1 as pb;
use orlop_api::containerd::services::diff::v1::diff_server::Diff;
use orlop_content::{BlockingReader, Provider};
use orlop_metadata::Store;
use orlop_oci::{Descriptor, media_type};
use orlop_snapshot::apply::{Applied, Options, apply};
use orlop_snapshot::{ApplyTarget, Mount, SnapshotId, TempMount, Whiteouts};
use tokio::runtime::Handle;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::convert::{descriptor_from_wire, descriptor_to_wire, mounts_from_wire, required};
use crate::status::ToStatus;
use crate::{Answer, Server, call};

#[tonic::async_trait]
impl Diff for Server {
    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Answer<pb::ApplyResponse> {
        let content = self.store().content(&call::scope(&request)?);
        let request = request.into_inner();
        let layer = descriptor_from_wire(required(request.diff, "diff")?)?;
        let mounts = mounts_from_wire(request.mounts)?;
        let reader = content.open(&layer.digest).await.map_err(|e| e.to_status())?;
        let reader = BlockingReader::new(Handle::current(), reader, 0);
        let store = self.store().clone();
        let applied = blocking(move || apply_to_mounts(&store, &mounts, reader, request.sync_fs)).await?;
        let applied = Descriptor::new(media_type::OCI_LAYER, applied.diff_id.into_digest(), applied.tar_bytes);
        Ok(Response::new(pb::ApplyResponse { applied: Some(descriptor_to_wire(&applied)) }))
    }

    async fn diff(&self, request: Request<pb::DiffRequest>) -> Answer<pb::DiffResponse> {
        call::scope(&request)?;
        Err(Status::unimplemented("making a layer from mounts"))
    }
}

fn apply_to_mounts(store: &Store, mounts: &[Mount], reader: BlockingReader, sync: bool) -> Result<Applied, Status> {
    let options = Options { squash_owners: !rustix::process::geteuid().is_root(), ..Options::default() };
    let (target, _mounted) = match own_target(store, mounts)? {
        Some(target) => (target, None),
        None => {
            let mounted = TempMount::new(mounts, store.root()).map_err(|e| e.to_status())?;
            let root = mounted.path().to_owned();
            (ApplyTarget { root, whiteouts: Whiteouts::Delete, deferred: None }, Some(mounted))
        }
    };
    let applied = apply(reader, &target, &options).map_err(|e| e.to_status())?;
    if sync {
        sync_tree(&target.root)?;
    }
    Ok(applied)
}

/// The tree of a driver of this store that these mounts make writable, if it is one.
fn own_target(store: &Store, mounts: &[Mount]) -> Result<Option<ApplyTarget>, Status> {
    let [mount] = mounts else { return Ok(None) };
    if mount.options.iter().any(|option| option == "ro") {
        return Err(Status::invalid_argument("a layer cannot be applied to a read-only mount"));
    }
    let written = match mount.kind.as_str() {
        "bind" => Some(mount.source.as_str()),
        "overlay" => mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")),
        _ => None,
    };
    let Some(written) = written.map(Path::new) else { return Ok(None) };
    let of_driver = |driver: &std::sync::Arc<dyn orlop_snapshot::Driver>| {
        let mut parts = written.strip_prefix(driver.root()).ok()?.components();
        let id = match (parts.next(), parts.next(), parts.next()) {
            (Some(Component::Normal(id)), Some(Component::Normal(_)), None) => id.to_str()?.parse().ok()?,
            _ => return None,
        };
        Some(driver.apply_target(SnapshotId(id))).filter(|target| target.root == written)
    };
    Ok(store.drivers().iter().find_map(of_driver))
}

fn sync_tree(root: &Path) -> Result<(), Status> {
    let synced = std::fs::File::open(root).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
    synced.map_err(|source| {
        let error = orlop_snapshot::Error::Io { operation: "sync", path: root.to_owned(), source };
        error.to_status()
    })
}
