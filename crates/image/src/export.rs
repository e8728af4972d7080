//! Exporting to archives.
//!
//! `oci`: an OCI layout in a tar, with Docker's `manifest.json` beside it, so that docker, podman, skopeo, ctr and
//! nerdctl read it. `docker`: the older `docker save`, one platform, layers as plain tars. Entries have no owner and no
//! time, and come in a fixed order: the same content gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;
use futures::StreamExt;
use orlop_content::{BlobReader, BlockingReader, Provider};
use orlop_metadata::{Scope, ScopedContent};
use orlop_oci::{Compression, Descriptor, Digest, MediaKind, Platform, PlatformMatcher, Reference};
use serde_json::json;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::transfer::{Transfer, Wanted, stream};
use crate::walk::ImageInfo;
use crate::{Error, Images, Result};

/// The layout of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// OCI layout with Docker's `manifest.json` beside it.
    #[default]
    Oci,
    /// `docker save` of old: uncompressed layers and `manifest.json`; one platform.
    Docker,
}

/// What to export.
#[derive(Debug, Clone, Default)]
pub struct ExportRequest {
    /// Anything [`Images::resolve_name`] finds.
    pub names: Vec<String>,
    /// Platforms; none: everything that is here.
    pub platforms: Vec<Platform>,
    /// Everything the targets name, or nothing.
    pub all_platforms: bool,
    /// The layout.
    pub format: ArchiveFormat,
    /// An index goes as it is, whatever of it goes along: the manifests of `platforms` (none: the host's), or with
    /// `all_platforms` all. As containerd exports.
    pub verbatim: bool,
    /// Without Docker's `manifest.json`.
    pub no_docker_manifest: bool,
}

/// One image to be written, under the names it was asked for by.
struct Item {
    names: Vec<String>,
    transfer: Transfer,
}

impl Images {
    /// Writes an archive. The same store content gives the same bytes.
    ///
    /// # Errors
    /// Nothing is written unless all that was asked for is here; [`Error::Incomplete`] names what is not.
    pub async fn export(
        &self,
        scope: &Scope,
        request: &ExportRequest,
        out: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<()> {
        self.under_lease(scope, async |scope| self.export_held(&scope, request, out).await).await
    }

    async fn export_held(
        &self,
        scope: &Scope,
        request: &ExportRequest,
        out: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<()> {
        let content = self.store().content(scope);
        let mut items = Vec::new();
        for name in &request.names {
            let found = self.resolve_name(scope, name).await?;
            let host = [self.platform().clone()];
            let wanted = match (request.format, request.platforms.as_slice()) {
                _ if request.verbatim && request.all_platforms => Wanted::All,
                (_, []) if request.verbatim => Wanted::Verbatim(&host),
                (_, platforms) if request.verbatim => Wanted::Verbatim(platforms),
                (_, []) if request.all_platforms => Wanted::All,
                (ArchiveFormat::Docker, []) => Wanted::Platforms(&host),
                (_, []) => Wanted::Present,
                (_, platforms) => Wanted::Platforms(platforms),
            };
            let transfer = self.transfer(scope, &found, wanted).await?;
            items.push(Item { names: found.names, transfer });
        }
        let docker_manifest = !request.no_docker_manifest;
        let mut archive = Archive { out, content, docker_manifest };
        match request.format {
            ArchiveFormat::Oci => archive.oci(&items, self.platform()).await?,
            ArchiveFormat::Docker => archive.docker(&items).await?,
        }
        archive.end().await
    }
}

struct Archive<'a> {
    out: &'a mut (dyn AsyncWrite + Send + Unpin),
    content: ScopedContent,
    docker_manifest: bool,
}

impl Archive<'_> {
    async fn oci(&mut self, items: &[Item], platform: &Platform) -> Result<()> {
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        self.file("oci-layout", &layout.to_string().into()).await?;
        self.file("index.json", &oci_index(items).to_string().into()).await?;
        if self.docker_manifest {
            let docker = items.iter().filter_map(|item| docker_entry(item, platform));
            let docker = serde_json::Value::from(docker.collect::<Vec<_>>());
            self.file("manifest.json", &docker.to_string().into()).await?;
        }
        for directory in ["blobs/", "blobs/sha256/"] {
            self.write(&header(directory, EntryType::Directory, 0)?).await?;
        }
        let mut written = BTreeSet::new();
        for item in items {
            for document in &item.transfer.documents {
                if written.insert(document.digest().digest().clone()) {
                    self.file(&blob_path(document.digest().digest()), document.raw()).await?;
                }
            }
            for (blob, _) in &item.transfer.blobs {
                if written.insert(blob.digest.clone()) {
                    self.blob(blob).await?;
                }
            }
        }
        Ok(())
    }

    async fn blob(&mut self, blob: &Descriptor) -> Result<()> {
        self.write(&header(&blob_path(&blob.digest), EntryType::Regular, blob.size)?).await?;
        let mut pieces = std::pin::pin!(stream(self.content.clone(), blob.digest.clone(), 0));
        let mut written = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            written += piece.len() as u64;
            self.write(&piece).await?;
        }
        if written != blob.size {
            let reason = format!("the manifest says {} bytes, the store has {written}", blob.size);
            return Err(Error::Inconsistent { digest: blob.digest.clone(), reason });
        }
        self.pad(blob.size).await
    }

    async fn docker(&mut self, items: &[Item]) -> Result<()> {
        let mut manifest: BTreeMap<Digest, serde_json::Value> = BTreeMap::new();
        let mut written = BTreeSet::new();
        for item in items {
            let [(digest, image)] = item.transfer.images.as_slice() else {
                let name = item.names.first().cloned().unwrap_or_default();
                return Err(Error::Name {
                    name,
                    reason: "a docker archive holds container images of one platform each",
                });
            };
            let document = item.transfer.documents.iter().find(|d| d.digest().digest() == digest);
            let layers = document.and_then(|d| d.manifest()).map(|m| m.layers.as_slice()).unwrap_or_default();
            for (layer, diff_id) in layers.iter().zip(&image.diff_ids) {
                if written.insert(diff_id.digest().clone()) {
                    self.plain_layer(layer, diff_id.digest()).await?;
                }
            }
            let config = format!("{}.json", image.id.digest().hex());
            if written.insert(image.id.digest().clone()) {
                let bytes =
                    orlop_content::read_verified(&self.content, image.id.digest(), orlop_oci::MAX_MANIFEST_BYTES);
                let bytes = bytes.await?;
                self.file(&config, &bytes).await?;
            }
            let paths: Vec<String> = image.diff_ids.iter().map(|d| format!("{}.tar", d.digest().hex())).collect();
            let entry = manifest
                .entry(image.id.digest().clone())
                .or_insert_with(|| json!({ "Config": config, "RepoTags": [], "Layers": paths }));
            if let Some(tags) = entry["RepoTags"].as_array_mut() {
                tags.extend(tags_of(&item.names).into_iter().map(serde_json::Value::from));
            }
        }
        let manifest = serde_json::Value::from(manifest.into_values().collect::<Vec<_>>());
        self.file("manifest.json", &manifest.to_string().into()).await
    }

    /// A layer as a plain tar. Its size stands before its bytes, so it is inflated twice.
    async fn plain_layer(&mut self, layer: &Descriptor, diff_id: &Digest) -> Result<()> {
        let reader = self.content.open(&layer.digest).await?;
        let size = if matches!(layer.kind(), MediaKind::Layer { compression: Compression::None, .. }) {
            reader.size()
        } else {
            let mut total = 0;
            let mut pieces = inflate(reader.clone(), layer.digest.clone());
            while let Some(piece) = pieces.recv().await {
                total += piece?.len() as u64;
            }
            total
        };
        self.write(&header(&format!("{}.tar", diff_id.hex()), EntryType::Regular, size)?).await?;
        let mut pieces = inflate(reader, layer.digest.clone());
        let mut written = 0;
        while let Some(piece) = pieces.recv().await {
            let piece = piece?;
            written += piece.len() as u64;
            self.write(&piece).await?;
        }
        if written != size {
            let reason = format!("it inflates to {size} bytes once and to {written} the next time");
            return Err(Error::Inconsistent { digest: layer.digest.clone(), reason });
        }
        self.pad(size).await
    }

    async fn file(&mut self, path: &str, bytes: &Bytes) -> Result<()> {
        self.write(&header(path, EntryType::Regular, bytes.len() as u64)?).await?;
        self.write(bytes).await?;
        self.pad(bytes.len() as u64).await
    }

    async fn pad(&mut self, size: u64) -> Result<()> {
        let rest = (512 - size % 512) % 512;
        self.write(&vec![0; rest as usize]).await
    }

    async fn end(&mut self) -> Result<()> {
        self.write(&[0; 1024]).await?;
        self.out.flush().await.map_err(|source| Error::Stream { operation: "write archive", source })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).await.map_err(|source| Error::Stream { operation: "write archive", source })
    }
}

fn header(path: &str, kind: EntryType, size: u64) -> Result<Vec<u8>> {
    let mut entry = EntryBuilder::new_ustar();
    let mode = if kind == EntryType::Directory { 0o755 } else { 0o644 };
    entry.path(path).entry_type(kind);
    // Sizes beyond 8 GiB are written in base 256 or as PAX by the builder.
    entry
        .mode(mode)
        .and_then(|e| e.uid(0))
        .and_then(|e| e.gid(0))
        .and_then(|e| e.mtime(0))
        .and_then(|e| e.size(size))
        .map_err(|e| Error::Stream { operation: "write archive", source: io::Error::other(e) })?;
    Ok(entry.finish_bytes())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// One descriptor for each name, as containerd and Docker write them; an image without a name has one all the same.
fn oci_index(items: &[Item]) -> serde_json::Value {
    let mut manifests = Vec::new();
    for item in items {
        let target = item.transfer.target().descriptor();
        let named: Vec<&String> = item.names.iter().filter(|n| tells_truth(n, &target.digest)).collect();
        if named.is_empty() {
            manifests.push(target.clone());
        }
        for name in named {
            let mut descriptor = target.clone();
            descriptor.annotations.insert("io.containerd.image.name".to_owned(), name.clone());
            if let Ok(Reference::Tag { tag, .. }) = name.parse() {
                descriptor.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
            }
            manifests.push(descriptor);
        }
    }
    json!({ "schemaVersion": 2, "mediaType": orlop_oci::media_type::OCI_INDEX, "manifests": manifests })
}

/// Whether a name may stand for what is exported: an image ID names nothing, a digest only its own document.
fn tells_truth(name: &str, target: &Digest) -> bool {
    match name.parse::<Reference>() {
        Ok(Reference::Id(_)) => false,
        Ok(Reference::Digest { digest, .. }) => digest == *target,
        _ => true,
    }
}

/// What `docker load` reads of an image in an OCI layout: the one of the host's platform, else the first.
fn docker_entry(item: &Item, platform: &Platform) -> Option<serde_json::Value> {
    let matcher = PlatformMatcher::only(platform);
    let rank = |(_, image): &&(Digest, ImageInfo)| matcher.rank(&image.platform).unwrap_or(usize::MAX);
    let (digest, image) = item.transfer.images.iter().min_by_key(rank)?;
    let document = item.transfer.documents.iter().find(|d| d.digest().digest() == digest)?;
    let layers: Vec<String> = document.manifest()?.layers.iter().map(|l| blob_path(&l.digest)).collect();
    let tags = tags_of(&item.names);
    Some(json!({ "Config": blob_path(image.id.digest()), "RepoTags": tags, "Layers": layers }))
}

/// The names that are tags, as people write them.
fn tags_of(names: &[String]) -> Vec<String> {
    let tag = |name: &String| match name.parse::<Reference>() {
        Ok(Reference::Tag { repository, tag }) => Some(format!("{}:{tag}", repository.familiar())),
        _ => None,
    };
    names.iter().filter_map(tag).collect()
}

/// Inflates a blob on a blocking thread, a megabyte at a time.
fn inflate(reader: std::sync::Arc<dyn BlobReader>, digest: Digest) -> tokio::sync::mpsc::Receiver<Result<Bytes>> {
    let (send, receive) = tokio::sync::mpsc::channel(2);
    let handle = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let failed = |source: io::Error| Error::Layer {
            layer: digest.clone(),
            source: orlop_snapshot::Error::Damaged { reason: source.to_string() },
        };
        let mut plain = match plain(BlockingReader::new(handle, reader, 0)) {
            Ok(plain) => plain,
            Err(source) => return drop(send.blocking_send(Err(failed(source)))),
        };
        loop {
            let mut piece = vec![0; 1 << 20];
            match plain.read(&mut piece) {
                Ok(0) => return,
                Ok(n) => {
                    piece.truncate(n);
                    // A receiver that is gone wants no more.
                    if send.blocking_send(Ok(piece.into())).is_err() {
                        return;
                    }
                }
                Err(source) => return drop(send.blocking_send(Err(failed(source)))),
            }
        }
    });
    receive
}

/// The bytes inside, by the magic number in front: gzip (RFC 1952), zstd (RFC 8878), or as they are.
fn plain(reader: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(1 << 18, reader);
    let magic = reader.fill_buf()?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Box::new(zstd::Decoder::with_buffer(reader)?));
    }
    Ok(Box::new(reader))
}
