//! Names: tag, untag, pin, undo.

use orlop_metadata::{Scope, UndoReport};

use crate::{Images, Result};

impl Images {
    /// Writes further names for what `source` means (also `name@{N}`: what the name meant N changes ago), with the
    /// hash references that go with them. Returns the records written.
    ///
    /// # Errors
    /// [`Error::Exists`](crate::Error::Exists) if a name points elsewhere already and `force` is false.
    pub async fn tag(&self, scope: &Scope, source: &str, names: &[String], force: bool) -> Result<Vec<String>> {
        let _ = (scope, source, names, force);
        todo!()
    }

    /// Deletes one record and nothing else; hash references that a name needs come back. Returns what came back.
    pub async fn untag(&self, scope: &Scope, name: &str) -> Result<Vec<String>> {
        let _ = (scope, name);
        todo!()
    }

    /// Sets or removes the pin on all records of an image. Returns them.
    pub async fn pin(&self, scope: &Scope, name: &str, pinned: bool) -> Result<Vec<String>> {
        let _ = (scope, name, pinned);
        todo!()
    }

    /// Undoes one removal (`None`: the newest), then reconciles.
    pub async fn undo(&self, scope: &Scope, id: Option<&str>) -> Result<UndoReport> {
        let _ = (scope, id);
        todo!()
    }
}
