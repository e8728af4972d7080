//! Where a look comes from: a server's API, of a large store with its lists from its files ([`beside`]), or the files of a
//! containerd's root alone.

use std::path::Path;
use std::sync::Arc;

use orlop_graph::model::{Inventory, SnapshotRow, Usage};
use orlop_lens::offline::{Extent, Root, Stored};
use orlop_lens::trees::Trees;
use orlop_lens::{Documents, Listing, Reader};
use orlop_oci::Digest;

use super::{Measured, beside};
use crate::commands::Context;
use crate::error::{Class, CliError, Result};
use crate::find::At;

/// What is read.
pub(crate) enum Source {
    /// A server; and its files, if the lists were read there: documents are too.
    Api(Reader, Option<Root>),
    /// A directory, and what was read there; its rows are elsewhere.
    Files(Root, Box<Stored>),
}

impl Source {
    /// What the command is connected to, and everything that it lists. Files are measured at once, a server is asked apart.
    pub(crate) async fn read(context: &Context, measured: Measured) -> Result<(Self, Inventory)> {
        if let Some(directory) = files(context) {
            return Self::of_files(directory, measured).await;
        }
        let reader = context.clients.reader();
        let (mut inventory, beside) = match beside::listing(context, Extent::Everything).await {
            Some((listing, root)) => (listing.inventory, Some(root)),
            None => (reader.inventory(None).await?, None),
        };
        inventory.collector = context.store.collector();
        Ok((Self::Api(reader, beside), inventory))
    }

    /// What a server that is Orlop's lists of what one thing has to do with, unless that is a good part of all.
    pub(crate) async fn around(context: &Context, text: &str) -> Result<Option<(Self, Inventory)>> {
        // What stands for a directory reads its files for want of a server.
        if !context.store.is_own() || files(context).is_some() {
            return Ok(None);
        }
        let reader = context.clients.reader();
        let Some(mut inventory) = reader.surroundings(&context.store.namespace, text).await? else { return Ok(None) };
        inventory.collector = context.store.collector();
        Ok(Some((Self::Api(reader, None), inventory)))
    }

    /// What a list of images shows; snapshots, each with what it takes, if there are at most so many: whether there are is told.
    pub(crate) async fn listing(context: &Context, snapshots: usize) -> Result<(Self, Inventory, bool)> {
        if let Some(directory) = files(context) {
            let (source, inventory) = Self::of_files(directory, Measured::None).await?;
            return Ok((source, inventory, true));
        }
        let reader = context.clients.reader();
        let (Listing { mut inventory, all_snapshots }, beside) =
            match beside::listing(context, Extent::Listing { snapshots }).await {
                Some((listing, root)) => (listing, Some(root)),
                None => (reader.listing(snapshots).await?, None),
            };
        inventory.collector = context.store.collector();
        reader.measure(&mut inventory, |_| true).await?;
        Ok((Self::Api(reader, beside), inventory, all_snapshots))
    }

    async fn of_files(directory: &Path, measured: Measured) -> Result<(Self, Inventory)> {
        let root = Root::open(directory).map_err(|error| unreadable(&error))?;
        let reading = root.clone();
        let read = move || -> std::result::Result<Stored, orlop_lens::offline::Error> {
            let mut stored = reading.read()?;
            if measured == Measured::All {
                reading.measure(&mut stored, |_| true);
            }
            Ok(stored)
        };
        let stored = tokio::task::spawn_blocking(read).await;
        let stored = stored.map_err(|e| CliError::new(Class::Failed, format!("read the files of the store: {e}")))?;
        let mut stored = stored.map_err(|error| unreadable(&error))?;
        let inventory = std::mem::take(&mut stored.inventory);
        Ok((Self::Files(root, Box::new(stored)), inventory))
    }

    /// What snapshots take, by their positions in the list. What could not be measured stays unknown.
    pub(crate) async fn usage(
        &self,
        inventory: &Inventory,
        wanted: impl Fn(&SnapshotRow) -> bool,
    ) -> Result<Vec<(usize, Usage)>> {
        match self {
            Self::Api(reader, _) => Ok(reader.usage(inventory, wanted).await?),
            Self::Files(root, stored) => Ok(root.usage(stored, inventory, wanted).0),
        }
    }

    /// Reads documents that have not been read.
    pub(crate) async fn documents(
        &self,
        documents: &mut Documents,
        wanted: impl IntoIterator<Item = (Arc<str>, Digest, u64)>,
    ) -> Result<()> {
        match self {
            Self::Api(reader, None) => Ok(reader.documents(documents, wanted).await?),
            Self::Api(reader, Some(root)) => {
                let wanted: Vec<_> = wanted.into_iter().collect();
                beside::documents(root, documents, &wanted).await?;
                Ok(reader.documents(documents, wanted).await?)
            }
            Self::Files(root, _) => {
                let digests = wanted.into_iter().map(|(_, digest, _)| digest);
                root.documents(documents, digests).map_err(|error| unreadable(&error))
            }
        }
    }

    /// Looks at the trees of snapshots, as far as this process can reach them.
    pub(crate) async fn trees<T: Send + 'static>(&self, look: impl FnOnce(Trees) -> T + Send + 'static) -> Result<T> {
        let reading: Box<dyn FnOnce() -> std::result::Result<Trees, orlop_lens::offline::Error> + Send> = match self {
            Self::Api(reader, _) => {
                let directories = reader.snapshotter_directories().await?;
                Box::new(move || Ok(Trees::read(&directories)))
            }
            Self::Files(root, _) => {
                let root = root.clone();
                Box::new(move || Trees::of_root(&root))
            }
        };
        let read = tokio::task::spawn_blocking(move || reading().map(look)).await;
        read.map_err(|e| CliError::new(Class::Failed, format!("look at the files of snapshots: {e}")))?
            .map_err(|error| unreadable(&error))
    }

    /// Names of the records in a namespace that pass containerd's filters, which only a server evaluates.
    pub(crate) async fn matching(&self, namespace: &str, filters: &[String]) -> Result<Vec<String>> {
        match self {
            Self::Api(reader, _) => Ok(reader.matching(namespace, filters).await?),
            Self::Files(..) => {
                Err(CliError::new(Class::Usage, "--filter needs a server: these are only a store's files"))
            }
        }
    }
}

/// The directory, if a containerd's files are all that there is.
fn files(context: &Context) -> Option<&Path> {
    match &context.store.at {
        At::Directory(directory) if !context.store.is_own() => Some(directory),
        _ => None,
    }
}

fn unreadable(error: &orlop_lens::offline::Error) -> CliError {
    CliError::new(Class::Failed, error.to_string())
}
