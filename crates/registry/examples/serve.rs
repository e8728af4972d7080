//! Serves an empty registry in memory until its standard input ends: `cargo run --example serve -- 127.0.0.1:5000`.
//!
//! It prints the address it listens on, so that a port of 0 can be asked for. With a directory as second argument, blobs
//! are kept there.

use std::io::Read as _;
use std::sync::Arc;

use orlop_content::{LocalStore, MemoryStore, Store};
use orlop_registry::{MemoryIndex, Registry, ServeOptions};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let content: Arc<dyn Store> = match arguments.next() {
        Some(directory) => Arc::new(LocalStore::open(directory)?),
        None => Arc::new(MemoryStore::new()),
    };
    let listener = TcpListener::bind(address).await?;
    let server = Registry::new(content, Arc::new(MemoryIndex::new())).serve(listener, ServeOptions::default())?;
    println!("{}", server.address());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    server.shutdown().await;
    Ok(())
}
