//! The directories of Orlop's own snapshots: `NUMBER/fs` is the tree, `NUMBER/meta` says as JSON whose it is
//! (docs/on-disk-format.md).

use std::path::Path;

use serde::Deserialize;

use super::file;
use crate::trees::Tree;

/// The largest `meta` that is read: labels are bounded, keys too.
const LARGEST: u64 = 1 << 20;

/// What is read of a `meta`.
#[derive(Deserialize)]
struct Meta {
    namespace: String,
    key: String,
}

/// The trees below a driver's directory.
///
/// # Errors
/// If it cannot be listed.
pub(super) fn trees(driver: &str, directory: &Path) -> Result<Vec<Tree>, String> {
    let names = file::names(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let tree = |name: std::ffi::OsString| {
        let directory = directory.join(name);
        // One that is being made, or removed, has none.
        let text = file::text(&directory.join("meta"), LARGEST).ok()?;
        let Meta { namespace, key } = serde_json::from_str(&text).ok()?;
        Some(Tree { namespace, snapshotter: driver.to_owned(), key, files: directory.join("fs"), directory })
    };
    let mut trees: Vec<Tree> = names.into_iter().filter_map(tree).collect();
    trees.sort_by(|a, b| (&a.namespace, &a.key).cmp(&(&b.namespace, &b.key)));
    Ok(trees)
}
