//! A layer that is content becomes files.

use std::path::{Component, Path};
use std::sync::Arc;

use orlop_content::{BlockingReader, Trouble};
use orlop_metadata::Store;
use orlop_snapshot::apply::{Applied, Limits, Options, apply};
use orlop_snapshot::{ApplyTarget, Driver, Mount, SnapshotId, TempMount, Whiteouts};
use tonic::Status;

use crate::status::ToStatus;

/// Applies a layer, which `read` reads from its start, to the tree that `mounts` make writable. Blocks.
pub(super) fn apply_to_mounts(
    store: &Store,
    limits: Limits,
    mounts: &[Mount],
    read: impl Fn() -> BlockingReader,
    sync: bool,
) -> Result<Applied, Status> {
    let squash_owners = !rustix::process::geteuid().is_root();
    let options = Options { squash_owners, limits, admission: Some(Arc::new(store.gate())) };
    let (target, mounted) = match own_target(store, mounts)? {
        Some(target) => (target, None),
        None => {
            let mounted = TempMount::new(mounts, store.root()).map_err(|e| e.to_status())?;
            let root = mounted.path().to_owned();
            (
                ApplyTarget { root, whiteouts: Whiteouts::Delete, deferred: None, applied: None, image: None },
                Some(mounted),
            )
        }
    };
    // What was there before cannot be told from what was made in vain: then the trash gives way for the client's next try.
    let anew = mounted.is_none() && target.is_empty();
    let mut asking = store.asking(0);
    let applied = loop {
        match apply(read(), &target, &options) {
            Err(error) if is_full(&error) && store.make_room(&mut asking) && anew => {
                target.empty().map_err(|error| error.to_status())?;
            }
            other => break other.map_err(|e| e.to_status())?,
        }
    };
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
    let of_driver = |driver: &Arc<dyn Driver>| {
        let mut parts = written.strip_prefix(driver.root()).ok()?.components();
        let id = match (parts.next(), parts.next(), parts.next()) {
            (Some(Component::Normal(id)), Some(Component::Normal(_)), None) => id.to_str()?.parse().ok()?,
            _ => return None,
        };
        Some(driver.client_target(SnapshotId(id))).filter(|target| target.root == written)
    };
    Ok(store.drivers().iter().find_map(of_driver))
}

fn is_full(error: &orlop_snapshot::Error) -> bool {
    matches!(error, orlop_snapshot::Error::Io { source, .. } if Trouble::of(source) == Trouble::Full)
}

fn sync_tree(root: &Path) -> Result<(), Status> {
    let synced = std::fs::File::open(root).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
    synced.map_err(|source| {
        let error = orlop_snapshot::Error::Io { operation: "sync", path: root.to_owned(), source };
        error.to_status()
    })
}
