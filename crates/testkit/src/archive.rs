//! Images on disk and in archives: OCI layouts and what `docker save` writes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::image::{Content, Image};
use crate::tar::{Entry, tar};

/// A name for an image in a layout: a full reference (`docker.io/library/x:1`) or just a tag.
pub type Named<'a> = (&'a str, &'a Content);

/// The files of an OCI layout, by path. Each image gets its name as `org.opencontainers.image.ref.name` and, where that
/// is a full reference, as `io.containerd.image.name`, with the tag alone in the former, as containerd exports.
pub fn layout(images: &[Named<'_>]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::from([("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())]);
    let mut manifests = Vec::new();
    for (name, content) in images {
        let mut root = serde_json::to_value(&content.root).expect("descriptors serialise");
        if !root["annotations"].is_object() {
            root["annotations"] = json!({});
        }
        let tag = name.rsplit_once(':').map_or(*name, |(_, tag)| tag);
        if name.contains('/') {
            root["annotations"]["io.containerd.image.name"] = json!(name);
        }
        root["annotations"]["org.opencontainers.image.ref.name"] = json!(tag);
        manifests.push(root);
        for (digest, blob) in &content.blobs {
            files.insert(format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex()), blob.bytes.clone());
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    files.insert("index.json".to_owned(), to_bytes(&index));
    files
}

/// Whether a tar, compressed or not, has come to its end.
///
/// `ctr` of containerd 2.x may end before everything is written that a server streams to it, whichever server it is; what is
/// not whole is to be asked for again.
///
/// # Panics
/// If GNU tar cannot be run.
pub fn is_whole(bytes: &[u8]) -> bool {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("a writable file");
    let listed = Command::new("tar").arg("--list").arg("--file").arg(file.path()).output().expect("tar is there");
    !bytes.is_empty() && listed.status.success()
}

/// Writes an OCI layout directory.
///
/// # Errors
/// What the file system says.
pub fn write_layout(dir: &Path, images: &[Named<'_>]) -> io::Result<()> {
    for (path, bytes) in layout(images) {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        std::fs::write(path, bytes)?;
    }
    Ok(())
}

/// An OCI layout in a tar: an `oci-archive`, as `skopeo` and `ctr images export` write it.
pub fn oci_archive(images: &[Named<'_>]) -> Vec<u8> {
    archive(&layout(images))
}

/// A docker-archive as `skopeo copy … docker-archive:` writes it: `manifest.json`, configs by image ID, plain layers by
/// diff ID.
pub fn docker_archive(images: &[(&[&str], &Image)]) -> Vec<u8> {
    let mut files = BTreeMap::new();
    let mut list = Vec::new();
    for (names, image) in images {
        let content = Content::image(image);
        let id = content.image_id().expect("an image has a config");
        let config = format!("{}.json", id.digest().hex());
        files.insert(config.clone(), content.bytes(id.digest()).to_vec());
        let mut layers = Vec::new();
        for layer in image.layers() {
            let path = format!("{}.tar", layer.diff_id().digest().hex());
            files.insert(path.clone(), layer.tar().to_vec());
            layers.push(path);
        }
        list.push(json!({"Config": config, "RepoTags": names, "Layers": layers}));
    }
    files.insert("manifest.json".to_owned(), to_bytes(&Value::Array(list)));
    archive(&files)
}

/// A tar of files, directories first.
pub fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut dirs = std::collections::BTreeSet::new();
    for path in files.keys() {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        dirs.extend(parents);
    }
    entries.extend(dirs.into_iter().map(Entry::dir));
    entries.extend(files.iter().map(|(path, bytes)| Entry::file(path, bytes)));
    tar(&entries)
}

fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("values serialise")
}
