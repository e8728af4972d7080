//! Bytes that the file system does not get back although they go, since files outside this store have them too: of content and
//! trees that were adopted from another store, or given to one.
//!
//! The file system alone knows, and it changes without a word: so it is asked each time. What cannot be asked counts as this
//! store's own.

use orlop_oci::Digest;
use orlop_snapshot::{Driver, SnapshotId, extents};

use super::bytes::block_on;
use super::removal::SnapshotRow;
use crate::Store;

/// Of blobs, and of trees, that would go.
pub(super) fn planned(store: &Store, blobs: &[String], snapshots: &[SnapshotRow]) -> u64 {
    let blobs = block_on(async {
        let mut bytes = 0;
        for digest in blobs.iter().filter_map(|digest| digest.parse().ok()) {
            bytes += of_blob(store, &digest).await;
        }
        bytes
    });
    let trees = snapshots.iter().map(|row| {
        let driver = store.driver(&row.driver).ok();
        driver.map_or(0, |driver| of_tree(driver.as_ref(), SnapshotId(row.id.unsigned_abs())))
    });
    blobs + trees.sum::<u64>()
}

/// Of a blob.
pub(super) async fn of_blob(store: &Store, digest: &Digest) -> u64 {
    let Some(linking) = store.raw_content().linking() else { return 0 };
    let Ok(file) = linking.file(digest).await else { return 0 };
    let Ok(stat) = rustix::fs::fstat(&file) else { return 0 };
    let size = stat.st_size.unsigned_abs();
    match stat.st_nlink > 1 {
        true => size,
        false if extents::may_be_shared(&file) => extents::shared_bytes_of(&file).unwrap_or(0).min(size),
        false => 0,
    }
}

/// Of a tree.
pub(super) fn of_tree(driver: &dyn Driver, id: SnapshotId) -> u64 {
    driver.elsewhere(id).unwrap_or(0)
}
