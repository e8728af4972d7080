//! A registry over files: uploads outlive the registry, and any number of them may be open.

use std::path::Path;
use std::sync::Arc;

use crate::common::header;
use orlop_content::LocalStore;
use orlop_oci::Digest;
use orlop_registry::{MemoryIndex, Registry, ServeOptions, Server};
use reqwest::Client;
use tokio::net::TcpListener;

async fn start(directory: &Path) -> Server {
    let store = LocalStore::open(directory).unwrap();
    let registry = Registry::new(Arc::new(store), Arc::new(MemoryIndex::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    registry.serve(listener, ServeOptions::default()).unwrap()
}

fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.address())
}

#[tokio::test]
async fn an_upload_outlives_the_registry() {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::new();
    let server = start(directory.path()).await;
    let post = client.post(url(&server, "/v2/app/blobs/uploads/")).send().await.unwrap();
    let location = header(&post, "location").to_owned();
    client.patch(url(&server, &location)).body("first, ").send().await.unwrap();
    server.shutdown().await;

    let server = start(directory.path()).await;
    let status = client.get(url(&server, &location)).send().await.unwrap();
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-6"));
    let digest = Digest::of(b"first, second");
    let put = client.put(url(&server, &format!("{location}?digest={digest}"))).body("second").send().await.unwrap();
    assert_eq!(put.status(), 201);
    let blob = client.get(url(&server, header(&put, "location"))).send().await.unwrap();
    assert_eq!(blob.text().await.unwrap(), "first, second");
    server.shutdown().await;
}

/// More uploads than the registry keeps open: those it closed go on when their next chunk comes.
#[tokio::test]
async fn many_uploads_take_turns() {
    const UPLOADS: usize = 150;
    let directory = tempfile::tempdir().unwrap();
    let client = Client::new();
    let server = start(directory.path()).await;
    let mut locations = Vec::new();
    for _ in 0..UPLOADS {
        let post = client.post(url(&server, "/v2/app/blobs/uploads/")).send().await.unwrap();
        locations.push(header(&post, "location").to_owned());
    }
    for chunk in ["one ", "two "] {
        for (i, location) in locations.iter().enumerate() {
            let patch = client.patch(url(&server, location)).body(format!("{chunk}{i} ")).send().await.unwrap();
            assert_eq!(patch.status(), 202);
        }
    }
    for (i, location) in locations.iter().enumerate() {
        let digest = Digest::of(format!("one {i} two {i} ").as_bytes());
        let put = client.put(url(&server, &format!("{location}?digest={digest}"))).send().await.unwrap();
        assert_eq!(put.status(), 201, "{i}");
    }
    let left = std::fs::read_dir(directory.path().join("ingest")).unwrap().count();
    assert_eq!(left, 0);
}
