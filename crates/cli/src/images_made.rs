//! Images for the demo, made from real files of this machine as an OCI layout.
//!
//! Two images share two layers; one of them has two tags. Files are read only, and only up to a cap.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use orlop_oci::{Descriptor, Digest, Platform, media_type};
use serde_json::json;

use crate::error::{Class, CliError, Result};

/// The most one layer takes of the machine's files, so that the demo stays quick.
const LAYER_BYTES: u64 = 8 << 20;
/// The most files of one layer.
const LAYER_FILES: usize = 2_000;
/// Larger files are passed over: a layer of one big file shows little.
const FILE_BYTES: u64 = 2 << 20;

/// Where each layer's files come from, in order of preference.
const SYSTEM: &[&str] =
    &["/etc/os-release", "/usr/lib/os-release", "/etc/services", "/usr/share/common-licenses", "/usr/share/zoneinfo"];
const TOOLS: &[&str] = &["/usr/bin", "/bin"];
const SERVICE: &[&str] = &["/usr/share/perl", "/usr/lib/python3", "/usr/share/misc", "/usr/share/doc"];
const WORKER: &[&str] = &["/usr/include", "/usr/share/locale", "/usr/share/man", "/etc"];

/// A name in the layout and what it stands for.
pub(crate) struct Made {
    /// `demo/service:1.0`.
    pub(crate) name: &'static str,
}

/// Writes the layout into `dir/layout`.
pub(crate) fn make(dir: &Path) -> Result<(PathBuf, Vec<Made>)> {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(CliError::at("create directory", &blobs))?;
    let layer = |name: &str, sources: &[&str]| Layer::make(dir, &blobs, name, sources);
    let system = layer("system", SYSTEM)?;
    let tools = layer("tools", TOOLS)?;
    let service = layer("service", SERVICE)?;
    let worker = layer("worker", WORKER)?;
    let first = image(&blobs, &[&system, &tools, &service], "service")?;
    let second = image(&blobs, &[&system, &tools, &worker], "worker")?;
    let named = [("demo/service:1.0", &first), ("demo/service:stable", &first), ("demo/worker:1.0", &second)];
    let manifests: Vec<Descriptor> = named
        .iter()
        .map(|(name, descriptor)| {
            let mut descriptor = (*descriptor).clone();
            descriptor.annotations.insert("io.containerd.image.name".into(), (*name).into());
            descriptor
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests });
    write(&layout.join("index.json"), index.to_string().as_bytes())?;
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok((layout, named.map(|(name, _)| Made { name }).into()))
}

struct Layer {
    descriptor: Descriptor,
    diff_id: String,
}

impl Layer {
    fn make(dir: &Path, blobs: &Path, name: &str, sources: &[&str]) -> Result<Self> {
        let tree = dir.join("trees").join(name);
        copy_some(sources, &tree)?;
        let packed = dir.join(format!("{name}.tar.gz"));
        let mut out = fs::File::create(&packed).map_err(CliError::at("create", &packed))?;
        let made = orlop_snapshot::diff::diff(None, &tree, &mut out, orlop_oci::Compression::Gzip)
            .map_err(|e| CliError::new(Class::Failed, e.to_string()))?;
        let bytes = fs::read(&packed).map_err(CliError::at("read", &packed))?;
        let descriptor = put(blobs, media_type::OCI_LAYER_GZIP, &bytes)?;
        Ok(Self { descriptor, diff_id: made.diff_id.to_string() })
    }
}

fn image(blobs: &Path, layers: &[&Layer], name: &str) -> Result<Descriptor> {
    let platform = Platform::host();
    let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Cmd": [format!("/{name}")], "Labels": { "org.opencontainers.image.title": name } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(blobs, media_type::OCI_CONFIG, config.to_string().as_bytes())?;
    let layers: Vec<&Descriptor> = layers.iter().map(|l| &l.descriptor).collect();
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers });
    put(blobs, media_type::OCI_MANIFEST, manifest.to_string().as_bytes())
}

fn put(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
    let digest = Digest::of(bytes);
    write(&blobs.join(digest.hex()), bytes)?;
    Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = fs::File::create(path).map_err(CliError::at("create", path))?;
    file.write_all(bytes).map_err(CliError::at("write", path))
}

/// Copies regular files below `sources` to the same paths below `tree`, until a cap is reached.
fn copy_some(sources: &[&str], tree: &Path) -> Result<()> {
    fs::create_dir_all(tree).map_err(CliError::at("create directory", tree))?;
    let mut budget = Budget { bytes: LAYER_BYTES, files: LAYER_FILES };
    for source in sources {
        let mut open = vec![PathBuf::from(source)];
        while let Some(path) = open.pop() {
            if budget.is_spent() {
                return Ok(());
            }
            // What cannot be read is passed over: these are some files of the machine, not particular ones.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                open.extend(sorted_children(&path));
            } else if metadata.is_file() && budget.take(metadata.len()) {
                copy(&path, tree)?;
            }
        }
    }
    Ok(())
}

struct Budget {
    bytes: u64,
    files: usize,
}

impl Budget {
    const fn is_spent(&self) -> bool {
        self.bytes == 0 || self.files == 0
    }

    fn take(&mut self, size: u64) -> bool {
        if size > FILE_BYTES || size > self.bytes {
            return false;
        }
        self.bytes -= size;
        self.files -= 1;
        true
    }
}

/// Last first, so that a stack gives them in order.
fn sorted_children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    paths.sort_by(|a, b| b.cmp(a));
    paths
}

fn copy(path: &Path, tree: &Path) -> Result<()> {
    let to = tree.join(path.strip_prefix("/").unwrap_or(path));
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(CliError::at("create directory", parent))?;
    }
    // A file that vanished or may not be read is passed over like one that never was.
    if fs::copy(path, &to).is_err() && to.exists() {
        fs::remove_file(&to).map_err(CliError::at("remove", &to))?;
    }
    Ok(())
}
