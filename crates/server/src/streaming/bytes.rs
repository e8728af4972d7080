//! Bytes through a stream, as containerd's transfer service sends them: the receiver says how many it takes.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use orlop_api::containerd::types::transfer::{Data, WindowUpdate};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Link;
use crate::any::unpack;

/// Bytes that a sender may be ahead: enough to keep it busy, and no more than one import should hold in memory.
const WINDOW: i32 = 1 << 20;

/// Bytes in one message: what containerd's clients take at once.
const PIECE: usize = 32 << 10;

struct Receiving {
    link: Arc<Link>,
    /// Bytes that the sender may still send.
    window: i64,
}

/// What the client sends, until it ends its side.
pub(crate) fn receive(link: Arc<Link>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::try_unfold(Receiving { link, window: 0 }, |mut state| async move {
        if state.window < i64::from(WINDOW) / 2 {
            // A client that has ended its side may not listen any more; what it sent is still to come.
            if state.link.send(&WindowUpdate { update: WINDOW }).await.is_ok() {
                state.window += i64::from(WINDOW);
            }
        }
        let Some(message) = state.link.receive().await.map_err(io::Error::other)? else { return Ok(None) };
        let data = unpack::<Data>(&message).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("expected bytes, found {:?}", message.type_url))
        })?;
        let data = data.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?.data;
        state.window -= i64::try_from(data.len()).unwrap_or(i64::MAX);
        Ok(Some((data, state)))
    })
}

/// Sends everything that `source` gives, as fast as the client takes it.
pub(crate) async fn send(link: &Link, mut source: impl AsyncRead + Unpin) -> io::Result<()> {
    let mut credit: usize = 0;
    loop {
        let mut piece = BytesMut::with_capacity(PIECE);
        if source.read_buf(&mut piece).await? == 0 {
            return Ok(());
        }
        let mut piece = piece.freeze();
        while !piece.is_empty() {
            while credit == 0 {
                credit = more(link).await?;
            }
            let data = piece.split_to(piece.len().min(credit).min(PIECE));
            credit -= data.len();
            link.send(&Data { data }).await.map_err(io::Error::other)?;
        }
    }
}

/// Waits until the client takes more.
async fn more(link: &Link) -> io::Result<usize> {
    let message = link.receive().await.map_err(io::Error::other)?;
    let message = message.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
    match unpack::<WindowUpdate>(&message) {
        Some(Ok(update)) => Ok(usize::try_from(update.update).unwrap_or(0)),
        _ => {
            let reason = format!("expected a window update, found {:?}", message.type_url);
            Err(io::Error::new(io::ErrorKind::InvalidData, reason))
        }
    }
}
