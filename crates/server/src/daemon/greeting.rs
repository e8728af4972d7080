//! A connection that tells whether the client has greeted: until it has, HTTP/2 does not ask whether it is alive.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// Bytes of the greeting of HTTP/2 (RFC 9113 section 3.4).
const GREETING_BYTES: usize = 24;

/// How much of the greeting has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting(Arc<AtomicUsize>);

impl Greeting {
    /// Whether the client has greeted.
    pub(super) fn is_complete(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= GREETING_BYTES
    }
}

/// A stream that notes how much is read from it, as far as that matters.
#[derive(Debug)]
pub(super) struct Greeted {
    stream: UnixStream,
    greeting: Greeting,
}

impl Greeted {
    pub(super) const fn new(stream: UnixStream, greeting: Greeting) -> Self {
        Self { stream, greeting }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if !self.greeting.is_complete() {
            self.greeting.0.fetch_add(into.filled().len() - before, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
