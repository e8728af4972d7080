//! Reads changes off an overlayfs upper directory.

use std::path::Path;

use super::{Change, Changes};
use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::fs::{self, xattr};
use crate::overlay::own_name;
use crate::{Error, Result, merged};

/// What an upper directory refers to lower layers by, after `trusted.overlay.` or `user.overlay.`.
const REFERENCES: [&[u8]; 2] = [b"redirect", b"metacopy"];

/// Lists what the tree at `root` changes.
pub(super) fn scan(root: &Path, userxattr: bool) -> Result<Changes> {
    let opaque = crate::overlay::opaque_name(userxattr);
    let mut changes = Changes::default();
    let mut walk = Walk::new(fs::open_dir(root).at("open", root)?).at("read", root)?;
    while let Some(step) = walk.next().at("read", root)? {
        let (name, stat, is_dir) = match step {
            Step::Enter { name, stat } => (name, stat, true),
            Step::Other { name, stat } => (name, stat, false),
            Step::Leave { .. } => continue,
        };
        let path = fs::join(&walk.path(), name.as_bytes());
        if fs::is_whiteout(&stat) {
            changes.insert(&path, Change::Delete);
            continue;
        }
        refuse_references(&walk, name.as_bytes(), &fs::shown(root, &path))?;
        changes.insert(&path, Change::Put);
        let shown = fs::shown(root, &path);
        if is_dir && merged::is_opaque(walk.dir(), name.as_bytes(), opaque).at("read an attribute of", shown)? {
            // Sorts before all names but control characters, and no order is needed.
            changes.insert(&fs::join(&path, super::write::OPAQUE_NAME), Change::Opaque);
        }
    }
    Ok(changes)
}

fn refuse_references(walk: &Walk, name: &[u8], shown: &Path) -> Result<()> {
    for attribute in xattr::list(walk.dir(), name).at("list the attributes of", shown)? {
        if own_name(&attribute).is_some_and(|own| REFERENCES.contains(&own)) {
            return Err(Error::Unsupported {
                what: "making a layer from this tree alone",
                reason: format!("{} refers to a lower layer; compare the mounted trees instead", shown.display()),
            });
        }
    }
    Ok(())
}
