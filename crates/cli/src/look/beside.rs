//! Whether the lists of a containerd that runs are read from its files: where the store is large and they can be reached.
//!
//! It is the API that is asked first and for everything else. Of a store with ten thousand images its lists cost containerd
//! two seconds of processor time, reading its databases beside it a fraction of that (`orlop_lens::offline`).
//!
//! # Invariants
//! - Only files are read of which the kernel says that the process behind the socket holds their lock: a root with the same
//!   path in another mount namespace, or of a containerd before, is never taken for it.
//! - What is read is what the API lists; if it does not fit together, the API is asked. `-v` says which way was taken, and why.

use std::path::Path;

use orlop_lens::Listing;
use orlop_lens::offline::{Extent, Root};

use crate::commands::Context;
use crate::find::At;

/// From this size of `meta.db` on: some six hundred images. Lists of less take less than a tenth of a second.
const LARGE: u64 = 16 << 20;

/// What the store lists, from its files; nothing if the API is to be asked.
pub(crate) async fn listing(context: &Context, extent: Extent) -> Option<Listing> {
    match attempt(context, extent).await {
        Ok(listing) => {
            tracing::info!(
                "the lists are read from the store's files beside its server: it is large, and they can be reached"
            );
            Some(listing)
        }
        Err(why) => {
            tracing::info!(why, "the lists are read over the API");
            None
        }
    }
}

async fn attempt(context: &Context, extent: Extent) -> Result<Listing, String> {
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
        root.running(extent).map_err(|error| error.to_string())
    });
    read.await.map_err(|error| format!("reading files: {error}"))?
}

/// The process that listens at a socket, if it is one that this process may know.
async fn server(socket: &Path) -> Option<u32> {
    let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
    let process = stream.peer_cred().ok()?.pid()?;
    u32::try_from(process).ok().filter(|process| *process != 0)
}
