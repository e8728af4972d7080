//! The root that is adopted: found, read, and asked again while it is taken over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_graph::model::{Inventory, SnapshotRow};
use orlop_lens::offline::{Root, Standing, Stored};
use orlop_oci::Digest;
use orlop_snapshot::linked;

use crate::embed;
use crate::error::{Class, CliError, Result};
use crate::find::places::Product;
use crate::find::{self, probe};
use crate::settings::Settings;

/// The snapshotter whose trees can be taken over.
pub(super) const OVERLAYFS: &str = "overlayfs";

/// A containerd's root that was read.
pub(in crate::commands) struct Source {
    read: Arc<Read>,
}

struct Read {
    root: Root,
    stored: Stored,
    standing: Standing,
}

impl orlop_image::Foreign for Read {
    fn inventory(&self) -> &Inventory {
        &self.stored.inventory
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.blob(digest)
    }

    fn tree(&self, snapshot: &SnapshotRow) -> Option<PathBuf> {
        self.stored.tree(snapshot)
    }

    fn has(&self, tree: &Path) -> bool {
        self.standing.has(OVERLAYFS, tree)
    }
}

impl Source {
    /// Reads the root that was given, or that of the server whose address was, or of the first containerd of this machine.
    pub(in crate::commands) async fn find(settings: &Settings, directory: Option<&Path>) -> Result<Self> {
        let directory = match directory {
            Some(directory) => directory.to_owned(),
            None => found(settings).await?,
        };
        Self::read(&directory).await
    }

    /// Reads a root.
    pub(in crate::commands) async fn read(directory: &Path) -> Result<Self> {
        if find::is_root(Product::Orlop, directory) {
            let message = format!("{} is a store of Orlop's: expected a containerd's root", directory.display());
            return Err(CliError::new(Class::Usage, message));
        }
        let directory = directory.to_owned();
        embed::blocking(move || {
            let path = directory.canonicalize().map_err(CliError::at("find", &directory))?;
            let root = Root::open(&path).map_err(unreadable)?;
            let (standing, stored) = (root.standing(), root.read().map_err(unreadable)?);
            Ok(Self { read: Arc::new(Read { root, stored, standing }) })
        })
        .await
    }

    pub(in crate::commands) fn foreign(&self) -> Arc<dyn orlop_image::Foreign> {
        self.read.clone()
    }

    pub(in crate::commands) fn root(&self) -> &Root {
        &self.read.root
    }

    pub(in crate::commands) fn stored(&self) -> &Stored {
        &self.read.stored
    }
}

/// The root that commands would look into if Orlop had no store.
async fn found(settings: &Settings) -> Result<PathBuf> {
    let place = match &settings.address {
        Some(address) => find::given(address, settings).await,
        None => {
            let none = find::places::Place { product: Product::Orlop, socket: PathBuf::new(), root: None };
            let others = find::all(settings, none).await.into_iter();
            let readable = |other: &probe::Found| {
                other.product != Product::Orlop && matches!(other.state, probe::State::Running(_) | probe::State::Files)
            };
            others.filter(|other| other.root.is_some()).find(readable).ok_or_else(|| {
                CliError::new(Class::NotFound, "no containerd is on this machine, nor the files of one")
                    .hint("give the directory: orlop adopt DIR; `orlop stores` shows what is here")
            })?
        }
    };
    place.root.filter(|_| place.product != Product::Orlop).ok_or_else(|| {
        CliError::new(Class::NotFound, format!("{} does not say where its files are", place.socket.display()))
            .hint("give the directory: orlop adopt DIR")
    })
}

/// Refuses a root whose files cannot have names in the store, before anything is done.
///
/// # Errors
/// [`Class::Usage`], with both places and what to do.
pub(in crate::commands) fn refuse_elsewhere(source: &Source, store: &Path, snapshots: bool) -> Result<()> {
    let root = source.root();
    let content = (root.blobs(), store.join("content"));
    let trees = (root.snapshotter(OVERLAYFS), store.join("snapshots"));
    for (theirs, own) in [Some(content), Some(trees).filter(|_| snapshots)].into_iter().flatten() {
        linked::reach(&theirs, &own).map_err(|why| {
            CliError::new(Class::Usage, format!("nothing can be shared without copying it: {why}")).hint(format!(
                "put Orlop's store on the file system of {}: --root DIR, or `root` in the configuration",
                root.path().display()
            ))
        })?;
    }
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "map_err gives it")]
fn unreadable(error: orlop_lens::offline::Error) -> CliError {
    use orlop_lens::offline::Error;
    let class = match &error {
        Error::NotRoot { .. } => Class::Usage,
        Error::Io { source, .. } => crate::error::class_of_io(source),
        _ => Class::Failed,
    };
    CliError::new(class, error.to_string())
}
