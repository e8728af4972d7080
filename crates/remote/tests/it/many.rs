//! A client that is asked for more and more registries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use orlop_oci::{Digest, Reference, media_type};
use orlop_remote::{Client, ClientOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::*;

/// Registries that are asked: each is the same server under another address of this machine.
const ASKED: usize = 200;

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
    let (port, taken) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(BTreeMap::new())));
    let counted = taken.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            *counted.lock().unwrap().entry(stream.local_addr().unwrap().ip().to_string()).or_insert(0) += 1;
            tokio::spawn(answer(stream));
        }
    });
    let options = ClientOptions { plain_http: true, ..ClientOptions::default() };
    let client = Client::with_tuning(options, quick());
    let address = |number: usize| format!("127.0.1.{number}");
    let ask = async |number: usize| {
        let reference: Reference = format!("{}:{port}/a:1", address(number)).parse().unwrap();
        client.resolve(&reference).await.unwrap();
        taken.lock().unwrap()[&address(number)]
    };
    for number in 1..=ASKED {
        assert_eq!(ask(number).await, 1);
        // What is asked for all the time is not the one to go.
        assert_eq!(ask(1).await, 1);
    }
    assert_eq!(ask(ASKED).await, 1, "still connected");
    assert_eq!(ask(2).await, 2, "forgotten, and connected anew");
}
