//! Connections: a Unix socket, or memory.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Bytes that an in-memory connection holds before the writer waits: one HTTP/2 window of a busy stream.
const DUPLEX_BYTES: usize = 1 << 20;

/// HTTP/2 windows: large enough that a blob's pieces and a page of rows never wait for one.
pub const WINDOW_BYTES: u32 = 4 << 20;

/// HTTP/2 frames: a piece of a blob fits in one.
pub const FRAME_BYTES: u32 = 1 << 20;

/// Connections asked for and not yet taken by the server.
const BACKLOG: usize = 8;

fn endpoint() -> Endpoint {
    // The address names nothing: connectors below decide where bytes go.
    Endpoint::from_static("http://orlop.local")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
}

/// Connects to a Unix socket.
///
/// # Errors
/// If nobody listens there.
pub async fn unix(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path: PathBuf = path.to_owned();
    endpoint().connect_with_connector(service_fn(move |_| dial(path.clone()))).await
}

/// A channel to a Unix socket that connects at the first call, and again after the connection has broken; calls fail as long as
/// nobody listens there. Must be called within a runtime.
pub fn unix_lazy(path: &Path) -> Channel {
    let path: PathBuf = path.to_owned();
    endpoint().connect_with_connector_lazy(service_fn(move |_| dial(path.clone())))
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

/// A channel whose connections are pipes in memory, and the pipes' other ends for a server. It connects at the first
/// call, and fails with `Unavailable` once the receiver is dropped. Must be called within a runtime.
pub fn memory() -> (Channel, mpsc::Receiver<DuplexStream>) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let connector = service_fn(move |_| {
        let sender = sender.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(DUPLEX_BYTES);
            let closed = |_| std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "the server has ended");
            sender.send(theirs).await.map_err(closed)?;
            Ok::<_, std::io::Error>(TokioIo::new(ours))
        }
    });
    (endpoint().connect_with_connector_lazy(connector), receiver)
}
