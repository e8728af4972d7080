//! The hashing stage: the digest of what was unpacked, on its way from the thread that unpacks to the one that writes.
//!
//! A thread of its own, since unpacking alone keeps a core busy where a layer has large files.

use std::sync::mpsc::{Receiver, SyncSender};

use orlop_oci::{Algorithm, DiffId, Digester};

/// Hashes what arrives and hands it on; `None` if the next stage hung up, which says why.
pub(super) fn run(arriving: Receiver<Vec<u8>>, full: SyncSender<Vec<u8>>) -> Option<DiffId> {
    let mut digester = Digester::new(Algorithm::Sha256);
    for chunk in arriving {
        digester.update(&chunk);
        full.send(chunk).ok()?;
    }
    Some(DiffId::new(digester.finish()))
}
