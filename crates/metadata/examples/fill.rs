//! Fills a root with N images of ten blobs each, three records an image, for the benchmarks of large stores.
//!
//! `cargo run --release -p orlop-metadata --example fill -- ROOT N`. Layers are a few bytes; every tenth is shared.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use orlop_content::{IngestOptions, Ingester, LocalStore};
use orlop_metadata::{ImageChange, Labels, ManifestSummary, OpenOptions, Scope, ScopedContent, Store};
use orlop_oci::{Descriptor, DiffId, Digest, ImageId, Platform, chain_ids, media_type};
use orlop_snapshot::NativeDriver;

/// Layers of an image; with config and manifest ten blobs.
const LAYERS: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(root), Some(count)) = (args.next(), args.next()) else {
        return Err("usage: fill ROOT N".into());
    };
    let root = Path::new(&root);
    let driver = NativeDriver::open(root.join("snapshots/native"))?;
    let content = LocalStore::open(root.join("content"))?;
    let options = OpenOptions { content: Arc::new(content), drivers: vec![Arc::new(driver)], read_only: false };
    let store = Store::open(root, options)?;
    let scope = store.scoped_lease(&Scope::new("k8s.io", "fill"), 86_400)?;
    for n in 0..count.parse::<usize>()? {
        image(&store, &scope, n).await?;
    }
    store.delete_lease(&scope.namespace, scope.lease.as_deref().unwrap_or_default())?;
    Ok(())
}

async fn image(store: &Store, scope: &Scope, n: usize) -> Result<(), Box<dyn Error>> {
    let content = store.content(scope);
    let mut layers = Vec::new();
    for l in 0..LAYERS {
        let text = if l == 0 { format!("base {}", n / 10) } else { format!("layer {n} {l}") };
        layers.push(put(&content, media_type::OCI_LAYER, text.into_bytes()).await?);
    }
    let diff_ids: Vec<DiffId> = layers.iter().map(|l| DiffId::new(l.digest.clone())).collect();
    let platform = Platform::host();
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": platform.os, "n": n,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(&content, media_type::OCI_CONFIG, config.to_string().into_bytes()).await?;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
    });
    let manifest = put(&content, media_type::OCI_MANIFEST, manifest.to_string().into_bytes()).await?;
    let mut labels = Labels::from([("containerd.io/gc.ref.content.config".to_owned(), config.digest.to_string())]);
    for (n, layer) in layers.iter().enumerate() {
        labels.insert(format!("containerd.io/gc.ref.content.l.{n}"), layer.digest.to_string());
    }
    content.label_all(&[(manifest.digest.clone(), labels)])?;
    let summary = ManifestSummary {
        size: manifest.size,
        media_type: manifest.media_type.clone(),
        image_id: Some(ImageId::new(config.digest.clone())),
        config_size: config.size,
        platform: Some(platform),
        user: String::new(),
        chain: chain_ids(&diff_ids),
        layers: layers.iter().map(|l| (l.digest.clone(), l.size)).collect(),
        manifests: Vec::new(),
    };
    store.put_summaries(&[(manifest.digest.clone(), summary)])?;
    let repository = format!("registry.example/team{}/app{n}", n % 50);
    let names = [format!("{repository}:1.0"), format!("{repository}@{}", manifest.digest), config.digest.to_string()];
    let managed = BTreeMap::from([("io.cri-containerd.image".to_owned(), "managed".to_owned())]);
    let upsert = |name| ImageChange::Upsert { name, target: manifest.clone(), labels: managed.clone() };
    store.write_images(scope, &names.map(upsert))?;
    Ok(())
}

async fn put(content: &ScopedContent, media_type: &str, bytes: Vec<u8>) -> Result<Descriptor, Box<dyn Error>> {
    let digest = Digest::of(&bytes);
    let size = bytes.len() as u64;
    let options = IngestOptions { reference: digest.to_string(), total: size, expected: Some(digest.clone()) };
    match content.writer(options).await {
        Ok(mut writer) => {
            writer.write(Bytes::from(bytes)).await?;
            match writer.commit(size, Some(&digest)).await {
                Ok(_) | Err(orlop_content::Error::AlreadyExists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(orlop_content::Error::AlreadyExists(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Descriptor::new(media_type, digest, size))
}
