//! Bounds on what waits to be sent.
//!
//! A client may open thousands of streams and read none of them. Each stream has at most one piece that it produced and
//! the client did not take; so pieces are large only while little waits.
//!
//! # Invariants
//! - What waits on all connections together stays below [`ALL_BYTES`] and one small piece for each open stream.
//! - No stream waits for another: where much waits, pieces get small, never forbidden.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

/// A piece while little waits.
const LARGE_PIECE: usize = 1 << 20;

/// A piece while much waits.
const SMALL_PIECE: usize = 16 << 10;

/// What one connection may have waiting in large pieces: several streams at full speed.
const CONNECTION_BYTES: usize = 16 << 20;

/// What all connections together may.
const ALL_BYTES: i64 = 128 << 20;

/// Frames of less than this are not worth counting.
const COUNTED_BYTES: usize = 4 << 10;

/// Bytes that wait to be sent on one connection, and on all.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow {
    connection: Arc<AtomicUsize>,
    all: Gauge,
}

thread_local! {
    /// How large the next piece may be, while an answer of a connection is being produced on this thread.
    static PIECE: Cell<usize> = const { Cell::new(LARGE_PIECE) };
}

/// Bytes that the next message of a stream should have at most.
pub(crate) fn piece_bytes() -> usize {
    PIECE.get()
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Flow {
    /// Counts into a gauge what waits on all connections.
    pub(super) fn new(all: Gauge) -> Self {
        Self { connection: Arc::default(), all }
    }

    /// Another connection of the same server.
    pub(super) fn connection(&self) -> Self {
        Self::new(self.all.clone())
    }

    /// Lets a body produce, with pieces as large as may be.
    pub(super) fn produce<T>(&self, produce: impl FnOnce() -> T) -> T {
        let much = self.connection.load(Ordering::Relaxed) >= CONNECTION_BYTES || self.all.get() >= ALL_BYTES;
        let before = PIECE.replace(if much { SMALL_PIECE } else { LARGE_PIECE });
        let produced = produce();
        PIECE.set(before);
        produced
    }

    /// Counts bytes until they are sent or dropped.
    pub(super) fn count(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < COUNTED_BYTES {
            return bytes;
        }
        self.connection.fetch_add(bytes.len(), Ordering::Relaxed);
        self.all.inc_by(signed(bytes.len()));
        Bytes::from_owner(Counted { bytes, flow: self.clone() })
    }
}

struct Counted {
    bytes: Bytes,
    flow: Flow,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.flow.connection.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.flow.all.dec_by(signed(self.bytes.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_small_while_much_waits_and_large_again_after() {
        let flow = Flow::default().connection();
        let piece = Bytes::from(vec![0; LARGE_PIECE]);
        let waiting: Vec<Bytes> = (0..16).map(|_| flow.count(piece.clone())).collect();
        assert_eq!(flow.produce(piece_bytes), SMALL_PIECE);
        assert_eq!(flow.connection().produce(piece_bytes), LARGE_PIECE, "another client is not slowed");
        assert_eq!(signed(waiting.iter().map(Bytes::len).sum()), flow.all.get());
        drop(waiting);
        assert_eq!((flow.produce(piece_bytes), flow.all.get()), (LARGE_PIECE, 0));
        assert_eq!(piece_bytes(), LARGE_PIECE, "outside of a connection nothing is counted");
    }

    #[test]
    fn many_connections_have_a_bound_together() {
        let flow = Flow::default();
        let piece = Bytes::from(vec![0; LARGE_PIECE]);
        let _waiting: Vec<Bytes> = (0..128).map(|_| flow.connection().count(piece.clone())).collect();
        assert_eq!(flow.connection().produce(piece_bytes), SMALL_PIECE);
    }
}
