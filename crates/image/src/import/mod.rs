//! Importing archives and layouts.
//!
//! An archive may come from a pipe, with blobs before the index that names them: every file goes into the content store
//! as it comes, under a lease, and only then it is seen what the archive means. Nothing is named before every image of
//! it is complete; what came in without being needed goes at the next collection.

mod directory;
mod files;
mod intake;
mod layout;
mod tarball;
mod verbatim;

use std::path::Path;

use bytes::{Bytes, BytesMut};
use orlop_content::{self as content, Provider};
use orlop_metadata::Scope;
use orlop_oci::{Platform, PlatformMatcher, Reference};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tracing::field::Empty;
use tracing::info_span;

use crate::error::ArchiveError;
use crate::gate::Archive;
use crate::pull::{Naming, Nowhere, PIECE, PipeWriter, Session, pipe};
use crate::span::within;
use crate::walk::{self, Select, Tree};
use crate::{Error, Event, Images, Missing, Outcome, Result, Sink};
use files::Files;
use layout::{DockerEntry, Entry};

/// Events of the reading thread that may wait to be told.
const WAITING_EVENTS: usize = 16;

/// What to import.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// Platforms; none: everything that is in the archive, the host's platform among it if the image has it.
    pub platforms: Vec<Platform>,
    /// Every platform that the archive's indexes name must be there.
    pub all_platforms: bool,
    /// Content only, no snapshots.
    pub no_unpack: bool,
    /// The snapshot driver; empty: the default.
    pub snapshotter: String,
    /// Names images that the archive does not name: `PREFIX:tag`, else `PREFIX@digest`.
    pub base_name: String,
}

/// What an archive means, before anything of it is looked at.
struct Contents {
    entries: Vec<Entry>,
    /// `manifest.json` beside an index: it may know names that the index lacks.
    docker: Vec<(Option<orlop_oci::Digest>, DockerEntry)>,
}

impl Images {
    /// Reads an archive (OCI layout or docker-archive in a tar; plain, gzip or zstd) to its end.
    ///
    /// # Errors
    /// Nothing becomes visible unless every image in it is complete, and policy lets each of them in.
    pub async fn import(
        &self,
        scope: &Scope,
        archive: &mut (dyn AsyncRead + Send + Unpin),
        request: &ImportRequest,
        sink: Sink<'_>,
    ) -> Result<Outcome> {
        let importing = async {
            let (outcome, names) = self
                .under_lease(scope, async |scope| {
                    let mut session = self.session(scope, &Nowhere, sink);
                    let files = session.take_in(archive).await?;
                    let contents = session.contents(&files).await?;
                    session.finish_import(contents, request).await
                })
                .await?;
            self.reconcile_names(scope, &names).await?;
            Ok(outcome)
        };
        within(info_span!("import", error = Empty), importing).await
    }

    /// The same from an OCI layout in a directory.
    pub async fn import_directory(
        &self,
        scope: &Scope,
        directory: &Path,
        request: &ImportRequest,
        sink: Sink<'_>,
    ) -> Result<Outcome> {
        let layout = directory::Layout::new(directory);
        let index = layout.document("index.json").await?.ok_or(Error::Archive(ArchiveError::Unknown))?;
        let contents = Contents { entries: layout::index_entries(&index)?, docker: Vec::new() };
        let importing = async {
            let (outcome, names) = self
                .under_lease(scope, async |scope| {
                    let session = self.session(scope, &layout, sink);
                    session.finish_import(contents, request).await
                })
                .await?;
            self.reconcile_names(scope, &names).await?;
            Ok(outcome)
        };
        within(info_span!("import", error = Empty), importing).await
    }

    async fn reconcile_names(&self, scope: &Scope, names: &[Reference]) -> Result<()> {
        for name in names {
            self.reconcile_image(&scope.namespace, &name.to_string()).await?;
        }
        Ok(())
    }
}

impl Session<'_> {
    /// Brings every file of an archive into the store. What was written then counts as brought by this session.
    pub(crate) async fn take_in(&mut self, archive: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Files> {
        let (writer, reader) = pipe();
        let (content, handle) = (self.content.clone(), tokio::runtime::Handle::current());
        let (told, mut events) = mpsc::channel(WAITING_EVENTS);
        let limits = self.images.settings().limits.clone();
        let reading = self.images.blocking(move |_| files::read(reader, &content, &handle, &told, &limits));
        let telling = async {
            while let Some(event) = events.recv().await {
                (self.sink)(Event::Blob(event));
            }
        };
        let (fed, files, ()) = futures::join!(feed(archive, writer), reading, telling);
        // Where the source fails, the reader fails too, and can only say that its pipe broke.
        fed?;
        let mut files = files?;
        *self.transferred.get_mut() += files.bytes;
        self.arrived.append(&mut files.written);
        Ok(files)
    }

    /// What an archive's files mean.
    async fn contents(&self, files: &Files) -> Result<Contents> {
        let docker = match files.documents.get("manifest.json") {
            Some(raw) => layout::docker_entries(raw)?,
            None => Vec::new(),
        };
        if let Some(raw) = files.documents.get("index.json") {
            let entries = layout::index_entries(raw)?;
            let docker = docker.into_iter().map(|entry| (entry.image_id(files), entry)).collect();
            return Ok(Contents { entries, docker });
        }
        if !files.documents.contains_key("manifest.json") {
            return Err(Error::Archive(ArchiveError::Unknown));
        }
        let mut entries = Vec::new();
        for entry in docker {
            entries.push(entry.manifest(self, files, &layout::Packed::new()).await?);
        }
        Ok(Contents { entries, docker: Vec::new() })
    }

    /// Checks that every image is complete, unpacks, and writes all records at once.
    async fn finish_import(&self, contents: Contents, request: &ImportRequest) -> Result<(Outcome, Vec<Reference>)> {
        let mut trees = Vec::new();
        for mut entry in contents.entries {
            let (tree, missing) = self.examine(&entry, request).await?;
            if !missing.is_empty() {
                return Err(Error::Incomplete { name: "the archive".to_owned(), missing });
            }
            borrow_names(&mut entry, &tree, &contents.docker);
            let names = self.names(&entry, request)?;
            trees.push((tree, names));
        }
        if trees.is_empty() {
            return Err(Error::Archive(ArchiveError::Empty));
        }
        let namings = self.admit_all(&trees).await?;
        let plan = self.import_plan(request);
        let mut named = Vec::new();
        let mut all_names = Vec::new();
        for ((tree, names), namings) in trees.into_iter().zip(namings) {
            self.bring_tree(&tree, &plan).await?;
            named.push((tree, namings));
            all_names.extend(names);
        }
        let records = self.record(&named, &plan).await?;
        let mut outcome = self.outcome(records, &named[0].0);
        for (tree, _) in &named[1..] {
            outcome.image_ids.extend(self.outcome(Vec::new(), tree).image_ids);
        }
        Ok((outcome, all_names))
    }

    /// Asks the gate about every name before anything is unpacked. Signatures may be in the archive too.
    async fn admit_all(&self, trees: &[(Tree, Vec<Reference>)]) -> Result<Vec<Vec<Naming>>> {
        let tags = |names: &[Reference]| names.iter().filter_map(Reference::tag).map(str::to_owned).collect();
        let entries = trees.iter().map(|(tree, names)| (tree, tags(names))).collect();
        let archive = Archive { documents: self, entries };
        let mut all = Vec::new();
        for (tree, names) in trees {
            let mut namings = Vec::new();
            for name in names {
                let naming = Naming::new(&name.to_string());
                let by = self.admit(&naming.name, &tree.target, &[&archive]).await?;
                let verified = crate::gate::label(&tree.target.digest, &by);
                namings.push(Naming { verified, ..naming });
            }
            all.push(namings);
        }
        Ok(all)
    }

    fn names(&self, entry: &Entry, request: &ImportRequest) -> Result<Vec<Reference>> {
        let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        let fallback = format!("import-{today}");
        let names = layout::names(entry, &request.base_name, &fallback)?;
        let is_told = request.base_name.is_empty() && !matches!(entry.names.first(), Some(layout::Given::Full(_)));
        if is_told && let Some(name) = names.first() {
            let advice = format!("the archive does not name {}; it becomes {name} (--base-name)", entry.target.digest);
            (self.sink)(Event::Message(advice));
        }
        Ok(names)
    }

    fn import_plan(&self, request: &ImportRequest) -> crate::pull::Plan {
        let host = self.images.platform().clone();
        let unpack = match (request.no_unpack, request.platforms.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec![host],
            (false, false) => request.platforms.clone(),
        };
        self.images.plan(Select::Present, unpack, &request.snapshotter, 0)
    }

    /// Walks an image and says what it lacks.
    async fn examine(&self, entry: &Entry, request: &ImportRequest) -> Result<(Tree, Vec<Missing>)> {
        let select = match (request.all_platforms, request.platforms.is_empty()) {
            (true, _) => Select::All,
            (false, true) => Select::Present,
            (false, false) => Select::Best(request.platforms.clone()),
        };
        let tree = walk::walk(self, "the archive", &entry.target, &select).await?;
        let host = PlatformMatcher::only(self.images.platform());
        let mut missing: Vec<Missing> = match select {
            Select::Present => required(&tree, &host),
            _ => tree.missing.clone(),
        };
        missing.extend(self.missing_blobs(&tree).await?);
        Ok((tree, missing))
    }

    /// Blobs of the wanted manifests that neither the store nor the archive has.
    async fn missing_blobs(&self, tree: &Tree) -> Result<Vec<Missing>> {
        let mut missing = Vec::new();
        for node in tree.manifests() {
            let Some(manifest) = node.document.manifest() else { continue };
            let platform = node.image.as_ref().map(|i| i.platform.clone()).or(node.descriptor.platform.clone());
            let config = node.image.is_none().then_some(&manifest.config);
            for blob in config.into_iter().chain(&manifest.layers) {
                if self.lacks(blob).await? {
                    let (digest, kind) = (blob.digest.clone(), walk::kind_word(blob));
                    missing.push(Missing { digest, kind, platform: platform.clone() });
                }
            }
        }
        Ok(missing)
    }

    async fn lacks(&self, blob: &orlop_oci::Descriptor) -> Result<bool> {
        if self.origin.may_have(blob) {
            return Ok(false);
        }
        match self.content.info(&blob.digest).await {
            Ok(info) if info.size == blob.size => Ok(false),
            Ok(info) => {
                let reason = format!("the manifest says {} bytes, the blob has {}", blob.size, info.size);
                Err(Error::Inconsistent { digest: blob.digest.clone(), reason })
            }
            Err(content::Error::NotFound { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Of the documents that are not there, those that may not be missing although no platform was asked for: the target
/// itself, a config, the host's platform, and everything if nothing is there at all. An archive made for some of an
/// index's platforms lacks the others'.
pub(crate) fn required(tree: &Tree, host: &PlatformMatcher) -> Vec<Missing> {
    let has_image = tree.manifests().next().is_some();
    let needed = |missing: &&Missing| {
        !has_image
            || missing.kind == "config"
            || missing.digest == tree.target.digest
            || missing.platform.as_ref().is_some_and(|p| host.matches(p))
    };
    tree.missing.iter().filter(needed).cloned().collect()
}

/// Gives an image that the index does not name the tags that `manifest.json` has for it.
fn borrow_names(entry: &mut Entry, tree: &Tree, docker: &[(Option<orlop_oci::Digest>, DockerEntry)]) {
    if !entry.names.is_empty() {
        return;
    }
    let ids: Vec<_> = tree.manifests().filter_map(|n| n.image.as_ref().map(|i| i.id.digest())).collect();
    let same = docker.iter().filter(|(id, _)| id.as_ref().is_some_and(|id| ids.contains(&id)));
    entry.names = same.flat_map(|(_, docker)| docker.names()).collect();
}

/// Feeds a source into a pipe, until it ends or nobody reads any more.
async fn feed(source: &mut (dyn AsyncRead + Send + Unpin), writer: PipeWriter) -> Result<()> {
    loop {
        let mut buffer = BytesMut::with_capacity(PIECE);
        let read = source.read_buf(&mut buffer).await;
        let count = read.map_err(|source| Error::Stream { operation: "read archive", source })?;
        if count == 0 {
            writer.finish().await;
            return Ok(());
        }
        let piece: Bytes = buffer.freeze();
        if !writer.send(piece).await {
            return Ok(());
        }
    }
}
