//! Does one thing and ends, so that its instructions can be counted: `benches/kept.py` runs it under callgrind.
//!
//! `kept unpack LAYER DIR`, `kept list ROOT`, `kept remove ROOT`, `kept collect ROOT`, `kept parse`. ROOT is one that the
//! example `fill` made. Nothing here depends on time, place or chance.
#![allow(clippy::print_stdout, reason = "an example")]

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use orlop_content::LocalStore;
use orlop_metadata::gc::Disposal;
use orlop_metadata::{ImageChange, OpenOptions, Scope, Store};
use orlop_oci::{Digest, Document, Reference, media_type};
use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{ApplyTarget, NativeDriver, Whiteouts};

const USAGE: &str = "kept unpack LAYER DIR | list ROOT | remove ROOT | collect ROOT | parse";
/// Images that `remove` takes away, one after the other.
const REMOVED: usize = 20;
/// How often `list` lists, and documents that `parse` parses.
const TIMES: usize = 5;
const DOCUMENTS: usize = 500;
/// Layers of a manifest that is parsed.
const LAYERS: usize = 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["unpack", layer, directory] => unpack(Path::new(layer), Path::new(directory))?,
        ["list", root] => list(&open(Path::new(root))?)?,
        ["remove", root] => remove(&open(Path::new(root))?)?,
        ["collect", root] => collect(&open(Path::new(root))?)?,
        ["parse"] => parse()?,
        _ => return Err(USAGE.into()),
    };
    println!("{done}");
    Ok(())
}

fn open(root: &Path) -> Result<Store> {
    let driver = NativeDriver::open(root.join("snapshots/native"))?;
    let content = LocalStore::open(root.join("content"))?;
    Ok(Store::open(
        root,
        OpenOptions { content: Arc::new(content), drivers: vec![Arc::new(driver)], read_only: false },
    )?)
}

/// Entries of a layer.
fn unpack(layer: &Path, directory: &Path) -> Result<u64> {
    let whiteouts = Whiteouts::Overlay { userxattr: false };
    let target = ApplyTarget { root: directory.to_owned(), whiteouts, deferred: None, applied: None, image: None };
    let applied = apply(File::open(layer)?, &target, &Options::default())?;
    Ok(applied.tar_bytes)
}

/// Records with sizes, as listings need them, and as containerd's API gives them.
fn list(store: &Store) -> Result<u64> {
    let mut seen = 0;
    for _ in 0..TIMES {
        seen += store.listing(true)?.images.len() + store.images("k8s.io", &[])?.len();
    }
    Ok(seen as u64)
}

/// Bytes given back by images that go one by one.
fn remove(store: &Store) -> Result<u64> {
    store.collect(Disposal::Reclaim)?;
    let scope = Scope::new("k8s.io", "kept");
    let mut freed = 0;
    for n in 0..REMOVED {
        let tag = store.image("k8s.io", &format!("registry.example/team{}/app{n}:1.0", n % 50))?;
        let records = store.images_leading_to("k8s.io", &[tag.target.digest].into())?;
        let changes: Vec<_> = records.into_iter().map(|record| ImageChange::Delete { name: record.name }).collect();
        freed += store.delete_images(&scope, &changes, &Disposal::Reclaim, None)?.blob_bytes;
    }
    if freed == 0 { Err("nothing was freed".into()) } else { Ok(freed) }
}

/// Objects looked at by a collection of a store that was never collected, and by a full one.
fn collect(store: &Store) -> Result<u64> {
    Ok(store.collect(Disposal::Reclaim)?.visited + store.collect_full(Disposal::Reclaim)?.visited)
}

/// References and manifests.
fn parse() -> Result<u64> {
    let digests: Vec<Digest> = (0..LAYERS as u64).map(|n| Digest::of(&n.to_le_bytes())).collect();
    let mut bytes = 0;
    for n in 0..DOCUMENTS {
        let layers: Vec<_> = digests
            .iter()
            .map(|digest| serde_json::json!({ "mediaType": media_type::OCI_LAYER, "digest": digest, "size": n }))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": { "mediaType": media_type::OCI_CONFIG, "digest": digests[0], "size": n }, "layers": layers,
        });
        let document = Document::parse(Bytes::from(manifest.to_string()), None)?;
        for name in [format!("team{n}/app"), format!("registry.example:5000/team/app{n}@{}", document.digest())] {
            bytes += name.parse::<Reference>()?.to_string().len();
        }
        bytes += document.children().len();
    }
    Ok(bytes as u64)
}
