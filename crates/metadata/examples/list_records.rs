//! How long a store with many image records takes to make, to open and to list.
//!
//! `cargo run --release -p orlop-metadata --example list_records [RECORDS]`
#![allow(clippy::print_stdout, reason = "an example")]

use std::sync::Arc;
use std::time::Instant;

use orlop_content::MemoryStore;
use orlop_metadata::{ImageChange, Labels, OpenOptions, Scope, Store};
use orlop_oci::{Descriptor, Digest};

fn open(root: &std::path::Path) -> Store {
    let options = OpenOptions { content: Arc::new(MemoryStore::new()), drivers: Vec::new(), read_only: false };
    Store::open(root, options).expect("a new root opens")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let records: usize = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let directory = tempfile::tempdir()?;
    let labels = Labels::from([
        ("io.cri-containerd.image".to_owned(), "managed".to_owned()),
        ("org.opencontainers.image.version".to_owned(), "1.2.3".to_owned()),
    ]);
    let changes: Vec<ImageChange> = (0..records)
        .map(|i| {
            let digest = Digest::of(format!("{}", i / 3).as_bytes());
            let name = match i % 3 {
                0 => format!("registry.example.com/team/service-{i}:v1.2.3"),
                1 => format!("registry.example.com/team/service-{}@{digest}", i - 1),
                _ => Digest::of(name_of_config(i).as_bytes()).to_string(),
            };
            let target = Descriptor::new("application/vnd.oci.image.index.v1+json", digest, 1000);
            ImageChange::Upsert { name, target, labels: labels.clone() }
        })
        .collect();

    let store = open(directory.path());
    let start = Instant::now();
    store.write_images(&Scope::new("k8s.io", "example"), &changes)?;
    println!("write {records} records in one transaction: {:?}", start.elapsed());
    drop(store);

    for round in 1..=3 {
        let start = Instant::now();
        let store = open(directory.path());
        let opened = start.elapsed();
        let listed = store.images("k8s.io", &[])?.len();
        let all = start.elapsed();
        let filter = r#"labels."io.cri-containerd.image"==managed,name~=service-42"#.to_owned();
        let matching = store.images("k8s.io", &[filter])?.len();
        let filtered = start.elapsed() - all;
        println!("round {round}: open {opened:?}, list {listed} {:?}, filter to {matching} {filtered:?}", all - opened);
    }
    Ok(())
}

fn name_of_config(i: usize) -> String {
    format!("config {i}")
}
