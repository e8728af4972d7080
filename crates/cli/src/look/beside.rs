//! Whether the lists of a containerd that runs are read from its files: where the store is large and they can be reached.
//!
//! Of everything else the API is asked, but for documents, which are read there too then. Of a store with ten thousand images its
//! lists cost containerd two seconds of processor time, and one more its documents; reading its files beside it costs a
//! fraction of that (`orlop_lens::offline`).
//!
//! # Invariants
//! - Only files are read of which the kernel says that the process behind the socket holds their lock: a root with the same
//!   path in another mount namespace, or of a containerd before, is never taken for it.
//! - What is read is what the API lists; if it does not fit together, the API is asked. `-v` says which way was taken, and why.
//! - A document counts only with the bytes that its digest says; of any other file the API is asked.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use orlop_lens::offline::{Extent, Root};
use orlop_lens::{Documents, Listing};
use orlop_oci::Digest;

use crate::commands::Context;
use crate::error::{Class, CliError};
use crate::find::At;

/// From this size of `meta.db` on: some six hundred images. Lists of less take less than a tenth of a second.
const LARGE: u64 = 16 << 20;

/// What the store lists, from its files; nothing if the API is to be asked.
pub(crate) async fn listing(context: &Context, extent: Extent) -> Option<(Listing, Root)> {
    match attempt(context, extent).await {
        Ok(found) => {
            tracing::info!(
                "the lists are read from the store's files beside its server: it is large, and they can be reached"
            );
            Some(found)
        }
        Err(why) => {
            tracing::info!(why, "the lists are read over the API");
            None
        }
    }
}

async fn attempt(context: &Context, extent: Extent) -> Result<(Listing, Root), String> {
    if context.store.is_own() {
        return Err("it is Orlop's own store".into());
    }
    let At::Socket(socket) = &context.store.at else { return Err("it is no server".into()) };
    let directory = context.store.root.as_deref().ok_or("the server does not say where its files are")?;
    let root = Root::open(directory).map_err(|error| error.to_string())?;
    match root.database_bytes() {
        None => return Err(format!("meta.db below {} cannot be read", directory.display())),
        Some(bytes) if bytes < LARGE => return Err(format!("meta.db has {bytes} bytes, fewer than {LARGE}")),
        Some(_) => {}
    }
    let server = server(socket).await.ok_or("which process listens at the socket is not known")?;
    let read = tokio::task::spawn_blocking(move || {
        if !root.is_held_by(server) {
            return Err(format!("process {server}, which listens at the socket, does not hold the lock of meta.db"));
        }
        let listing = root.running(extent).map_err(|error| error.to_string())?;
        Ok((listing, root))
    });
    read.await.map_err(|error| format!("reading files: {error}"))?
}

/// Takes in those of some documents whose files are here and sound; the server is asked for the others. Of ten thousand images
/// they are thirty thousand calls, which cost the server more than its lists.
pub(crate) async fn documents(
    root: &Root,
    documents: &mut Documents,
    wanted: &[(Arc<str>, Digest, u64)],
) -> crate::error::Result<()> {
    let unread = wanted.iter().map(|(_, digest, _)| digest).filter(|digest| !documents.was_asked_for(digest));
    let unread: BTreeSet<Digest> = unread.cloned().collect();
    if unread.is_empty() {
        return Ok(());
    }
    tracing::info!(documents = unread.len(), "documents are read from files too");
    let (root, unread) = (root.clone(), unread.into_iter().collect::<Vec<_>>());
    let read = tokio::task::spawn_blocking(move || root.sound_documents(&unread)).await;
    documents.extend(read.map_err(|e| CliError::new(Class::Failed, format!("read the documents of the store: {e}")))?);
    Ok(())
}

/// The process that listens at a socket, if it is one that this process may know.
async fn server(socket: &Path) -> Option<u32> {
    let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
    let process = stream.peer_cred().ok()?.pid()?;
    u32::try_from(process).ok().filter(|process| *process != 0)
}
