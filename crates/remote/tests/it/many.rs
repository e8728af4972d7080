//! A client that is asked for more and more registries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orlop_oci::{Digest, Reference, media_type};
use orlop_remote::{Client, ClientOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::*;

/// Registries that are asked: each is the same server under another address of this machine.
const ASKED: usize = 200;
/// What a client keeps at most.
const KEPT: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers every request on a connection with the headers of a manifest, until the client closes it.
async fn answer(mut stream: TcpStream) {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ncontent-length: 7\r\ndocker-content-digest: {}\r\n\r\n",
        media_type::OCI_MANIFEST,
        Digest::of(b"a thing")
    );
    let mut seen = Vec::new();
    loop {
        match stream.read_buf(&mut seen).await {
            Ok(0) | Err(_) => return,
            Ok(_) if seen.ends_with(b"\r\n\r\n") => {}
            Ok(_) => continue,
        }
        assert!(seen.starts_with(b"HEAD "));
        seen.clear();
        if stream.write_all(head.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Regression: a client kept the connections and all it knew of every registry that it was ever asked for.
#[tokio::test]
async fn of_many_registries_only_the_last_ones_are_remembered() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let (port, open) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = open.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let open = counted.clone();
            open.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                answer(stream).await;
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let options = ClientOptions { plain_http: true, ..ClientOptions::default() };
    let client = Client::with_tuning(options, quick());
    let reference = |number: usize| format!("127.0.1.{number}:{port}/a:1").parse::<Reference>().unwrap();
    for number in 1..=ASKED {
        client.resolve(&reference(number)).await.unwrap();
        // What is asked for all the time is not the one to go.
        client.resolve(&reference(1)).await.unwrap();
    }
    let closed = async {
        while open.load(Ordering::SeqCst) > KEPT {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, closed).await;
    assert!(waited.is_ok(), "{} connections are kept", open.load(Ordering::SeqCst));
    assert!(open.load(Ordering::SeqCst) > 0);
    client.resolve(&reference(2)).await.unwrap();
}
