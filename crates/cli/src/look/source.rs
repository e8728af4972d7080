//! Where a look comes from: a server's API, or the files of a containerd's root.

use std::sync::Arc;

use orlop_graph::model::{Inventory, SnapshotRow, Usage};
use orlop_lens::offline::{Root, Stored};
use orlop_lens::{Documents, Reader, Scope};
use orlop_oci::Digest;

use super::Measured;
use crate::commands::Context;
use crate::error::{Class, CliError, Result};
use crate::find::At;

/// What is read.
pub(crate) enum Source {
    /// A server.
    Api(Reader),
    /// A directory, and what was read there; its rows are elsewhere.
    Files(Root, Box<Stored>),
}

impl Source {
    /// What the command is connected to, and everything that it lists.
    pub(crate) async fn read(context: &Context, measured: Measured) -> Result<(Self, Inventory)> {
        let directory = match &context.store.at {
            At::Directory(directory) if !context.store.is_own() => directory,
            _ => {
                let reader = context.clients.reader();
                let mut inventory = reader.inventory(Scope::All, None).await?;
                inventory.collector = context.store.collector();
                if measured == Measured::All {
                    reader.measure(&mut inventory, |_| true).await?;
                }
                return Ok((Self::Api(reader), inventory));
            }
        };
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
            Self::Api(reader) => Ok(reader.usage(inventory, wanted).await?),
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
            Self::Api(reader) => Ok(reader.documents(documents, wanted).await?),
            Self::Files(root, _) => {
                let digests = wanted.into_iter().map(|(_, digest, _)| digest);
                root.documents(documents, digests).map_err(|error| unreadable(&error))
            }
        }
    }

    /// Names of the records in a namespace that pass containerd's filters, which only a server evaluates.
    pub(crate) async fn matching(&self, namespace: &str, filters: &[String]) -> Result<Vec<String>> {
        match self {
            Self::Api(reader) => Ok(reader.matching(namespace, filters).await?),
            Self::Files(..) => {
                Err(CliError::new(Class::Usage, "--filter needs a server: these are only a store's files"))
            }
        }
    }
}

fn unreadable(error: &orlop_lens::offline::Error) -> CliError {
    CliError::new(Class::Failed, error.to_string())
}
