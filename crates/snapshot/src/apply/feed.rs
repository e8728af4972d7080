//! The layer's bytes, from whoever hands them over to the thread that unpacks them: that one may open nothing itself.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender};

/// Bytes of a piece. Few, so that little is read ahead of a layer that is refused.
const PIECE: usize = 64 * 1024;
/// Pieces on the way: one that is filled while another is unpacked, and one in hand.
pub(super) const PIECES: usize = 3;

/// What travels: bytes, or that there will be no more since reading failed.
pub(super) type Piece = io::Result<Vec<u8>>;

/// Reads `reader` to its end, or until nobody wants more of it.
pub(super) fn pump(mut reader: impl Read, empty: &Receiver<Vec<u8>>, full: SyncSender<Piece>) {
    while let Ok(mut piece) = empty.recv() {
        piece.resize(PIECE, 0);
        let read = loop {
            match reader.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let ended = !matches!(read, Ok(1..));
        let sent = match read {
            Ok(0) => return,
            Ok(count) => {
                piece.truncate(count);
                full.send(Ok(piece))
            }
            Err(error) => full.send(Err(error)),
        };
        if ended || sent.is_err() {
            return;
        }
    }
}

/// The other end.
pub(super) struct Feed {
    arriving: Receiver<Piece>,
    recycle: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Feed {
    pub(super) const fn new(arriving: Receiver<Piece>, recycle: Sender<Vec<u8>>) -> Self {
        Self { arriving, recycle, piece: Vec::new(), at: 0 }
    }
}

impl Read for Feed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            // The end: the other side is gone.
            let Ok(next) = self.arriving.recv() else { return Ok(0) };
            let spent = std::mem::replace(&mut self.piece, next?);
            self.at = 0;
            if spent.capacity() > 0 {
                // Whoever has read everything needs it no more.
                let _ = self.recycle.send(spent);
            }
        }
        let count = out.len().min(self.piece.len() - self.at);
        out[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
