//! A bounded pipe from an async task to a thread that may block.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Pieces in flight; with pieces of at most [`PIECE`] this is 2 MiB a layer.
const PIECES: usize = 8;
/// Bytes of a piece.
pub(crate) const PIECE: usize = 256 * 1024;

enum Item {
    Bytes(Bytes),
    End,
}

/// The end that is written to. Dropped without [`PipeWriter::finish`], it makes the reader fail.
pub(crate) struct PipeWriter(mpsc::Sender<Item>);

/// The end that is read from, on a thread that may block.
pub(crate) struct PipeReader {
    receiver: mpsc::Receiver<Item>,
    current: Bytes,
    ended: bool,
}

/// Makes a pipe.
pub(crate) fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = mpsc::channel(PIECES);
    (PipeWriter(sender), PipeReader { receiver, current: Bytes::new(), ended: false })
}

impl PipeWriter {
    /// Waits for room, then hands over; false if the reader is gone.
    pub(crate) async fn send(&self, bytes: Bytes) -> bool {
        self.0.send(Item::Bytes(bytes)).await.is_ok()
    }

    /// Says that everything was sent.
    pub(crate) async fn finish(self) {
        // A reader that is gone needs no end.
        let _ = self.0.send(Item::End).await;
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Item::Bytes(bytes)) => self.current = bytes,
                Some(Item::End) => self.ended = true,
                None => return Err(io::Error::other("the transfer of the layer stopped")),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current[..count]);
        self.current.advance(count);
        Ok(count)
    }
}
