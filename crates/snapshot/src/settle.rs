//! Ties the open ends of a layer that was applied without its parents.

use std::path::PathBuf;

use crate::apply::Deferred;
use crate::{ApplyTarget, Error, Result};

/// Resolves what `target` left open against the trees below, nearest first.
pub(crate) fn settle(target: &ApplyTarget, _lowers: &[PathBuf]) -> Result<()> {
    let Some(notes) = &target.deferred else { return Ok(()) };
    let deferred = Deferred::load(notes)?;
    if let Some((path, link)) = deferred.links.first_key_value() {
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        return Err(Error::LinkTarget { entry: text(path), target: text(&link.target) });
    }
    Ok(())
}
