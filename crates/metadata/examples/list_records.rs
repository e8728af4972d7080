//! How long a store with many image records takes to make, to open and to list.
//!
//! `cargo run --release -p orlop-metadata --example list_records [RECORDS]`
#![allow(clippy::print_stdout, reason = "an example")]

use std::sync::Arc;
use std::time::Instant;

use orlop_content::MemoryStore;
use orlop_metadata::{ImageChange, Labels, ManifestSummary, OpenOptions, Scope, Store};
use orlop_oci::{ChainId, Descriptor, Digest, ImageId, Platform};

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
    let start = Instant::now();
    store.put_summaries(&summaries(records / 3))?;
    println!("write {} summaries in one transaction: {:?}", records / 3, start.elapsed());
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
        let start = Instant::now();
        println!("         read {} summaries {:?}", store.summaries()?.len(), start.elapsed());
    }
    Ok(())
}

/// Images of eight layers.
fn summaries(count: usize) -> Vec<(Digest, ManifestSummary)> {
    let digest = |text: String| Digest::of(text.as_bytes());
    let summary = |i: usize| ManifestSummary {
        size: 1000,
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        image_id: Some(ImageId::new(digest(name_of_config(i)))),
        config_size: 5000,
        platform: Some(Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), ..Platform::default() }),
        user: String::new(),
        chain: (0..8).map(|layer| ChainId::new(digest(format!("chain {i} {layer}")))).collect(),
        layers: (0..8).map(|layer| (digest(format!("layer {i} {layer}")), 1_000_000)).collect(),
        manifests: Vec::new(),
    };
    (0..count).map(|i| (digest(i.to_string()), summary(i))).collect()
}

fn name_of_config(i: usize) -> String {
    format!("config {i}")
}
