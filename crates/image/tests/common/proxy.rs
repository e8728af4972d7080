//! A TCP proxy that counts what it hands on and can cut every connection after so many bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: SocketAddr,
    /// Bytes to the client that are still let through.
    allowance: AtomicI64,
    served: AtomicU64,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { target, allowance: AtomicI64::new(i64::MAX), served: AtomicU64::new(0) });
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, shared.clone()));
            }
        });
        Self { address, state }
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Lets so many bytes through, then cuts everything.
    pub fn allow(&self, bytes: i64) {
        self.state.allowance.store(bytes, Ordering::SeqCst);
    }

    /// Bytes handed on since the last call.
    pub fn served(&self) -> u64 {
        self.state.served.swap(0, Ordering::SeqCst)
    }
}

async fn carry(client: TcpStream, state: Arc<State>) {
    if state.allowance.load(Ordering::SeqCst) <= 0 {
        return;
    }
    let Ok(server) = TcpStream::connect(state.target).await else { return };
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut client_read, &mut server_write).await;
    };
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = server_read.read(&mut buffer).await {
            if state.allowance.fetch_sub(count as i64, Ordering::SeqCst) <= count as i64 {
                return;
            }
            state.served.fetch_add(count as u64, Ordering::SeqCst);
            if client_write.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = up => {}, () = down => {} }
}
