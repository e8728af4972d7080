//! A place where roots are laid, one after the other.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where states are laid, one after the other: in memory where there is a file system in it.
pub(crate) struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { dir: orlop_testkit::disk::in_memory() }
    }

    /// A root that was made anew, in place of the last one.
    pub(crate) fn lay(&self, lay: impl FnOnce(&Path) -> std::io::Result<()>) -> PathBuf {
        let top = self.dir.path().join("top");
        if top.exists() {
            std::fs::remove_dir_all(&top).expect("the last state goes");
        }
        std::fs::create_dir(&top).expect("a directory");
        lay(&top).expect("the state is laid");
        top.join("root")
    }
}
