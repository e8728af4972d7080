//! Images of Orlop's own into a containerd that runs, by its API alone: what is put among its files is what it is asked for right after.
//!
//! A blob gets its place in the containerd's content store, and then a write of its digest is begun and committed: that containerd finds
//! the bytes there and needs none. A layer is prepared as for unpacking, its tree linked into the directory that the mounts name, and
//! committed under its chain ID. Records come last. A lease of that containerd holds all of it until then.
//!
//! # Invariants
//! - Nothing is written into a database of that containerd, and to no file but the directory of a snapshot that was prepared here.
//! - Paths are made of digests, and of what that containerd says of a snapshot if it is below its root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::images::v1 as records;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_image::{ChainOf, GC_ROOT, GC_SNAPSHOT, Images};
use orlop_lens::offline::places;
use orlop_metadata::{self as metadata, Image, Labels, Scope};
use orlop_oci::Digest;
use orlop_snapshot::linked;
use tonic::Code;

use super::{ACTOR, Args, Document, files};
use crate::client::Clients;
use crate::commands::adopt::failed;
use crate::commands::containerd::{self, Containerd};
use crate::embed;
use crate::error::{Class, CliError, Result};
use crate::find::places::{KUBERNETES, at_host};
use crate::settings::Settings;

/// The driver whose trees are given.
const DRIVER: &str = "overlayfs";
/// How often a blob is put in its place: that containerd's collection takes it if it comes before the write.
const TRIES: u32 = 5;

/// Gives images to the containerd at a socket.
pub(super) async fn run(settings: &Settings, args: &Args, socket: &Path) -> Result<Document> {
    let server = containerd::answering(socket).await?;
    let root = server.root.as_deref().map(|root| at_host(settings.around.host.as_deref(), root));
    let root = root.filter(|root| root.join(places::CONTENT).is_dir()).ok_or_else(|| {
        let message = format!("{} has no content store of its own that is reached from here", socket.display());
        CliError::new(Class::Usage, message)
            .hint("content that it has in Orlop is there already; its root must be visible")
    })?;
    let own = &settings.root;
    for (theirs, here) in [(places::blobs(&root), own.join("content")), (root.clone(), own.join("snapshots"))] {
        linked::reach(&theirs, &here).map_err(|why| {
            CliError::new(Class::Usage, format!("nothing can be shared without copying it: {why}"))
                .hint("orlop export NAME | ctr images import - copies")
        })?;
    }
    let images = embed::images(own, &settings.config).await?;
    let namespace = settings.namespace.clone().unwrap_or_else(|| KUBERNETES.to_owned());
    let scope = Scope::new(&namespace, ACTOR);
    let chosen = chosen(&images, &scope, &args.what).await?;
    let mut done = Document::new(args, root.clone());
    let to = Containerd { clients: Clients::new(server.channel, &namespace, ACTOR)?, snapshotter: &args.snapshotter };
    let giving = |to| Giving { images: &images, scope: &scope, to, root: &root, args };
    if args.plan {
        giving(to).all(&chosen, &mut done).await?;
        return Ok(done);
    }
    to.under_lease(async |to| giving(to).all(&chosen, &mut done).await).await?;
    Ok(done)
}

/// The records that are given: those of the names, with all others of the same images; without names all.
async fn chosen(images: &Images, scope: &Scope, names: &[String]) -> Result<Vec<Image>> {
    let (store, namespace) = (images.store().clone(), scope.namespace.clone());
    let all = embed::blocking(move || store.images(&namespace, &[]).map_err(|e| failed(e.into()))).await?;
    if names.is_empty() {
        return Ok(all);
    }
    let mut targets = Vec::new();
    for name in names {
        let found = images.find_target(scope, name).await.map_err(failed)?;
        targets.push(found);
    }
    Ok(all.into_iter().filter(|image| targets.contains(&image.target.digest)).collect())
}

struct Giving<'g> {
    images: &'g Images,
    scope: &'g Scope,
    to: Containerd<'g>,
    root: &'g Path,
    args: &'g Args,
}

impl Giving<'_> {
    async fn all(&self, chosen: &[Image], done: &mut Document) -> Result<()> {
        let mut by_target: BTreeMap<&Digest, Vec<&Image>> = BTreeMap::new();
        for image in chosen {
            by_target.entry(&image.target.digest).or_default().push(image);
        }
        for records in by_target.into_values() {
            let target = &records[0].target;
            let chains = self.images.chains(self.scope, &records[0].name, target).await.map_err(failed)?;
            for blob in self.blobs(target.digest.clone()).await? {
                self.blob(&blob, done).await?;
            }
            for chain in &chains {
                self.chain(chain, done).await?;
            }
            for record in records {
                self.record(record).await?;
                done.names.push(record.name.clone());
            }
        }
        Ok(())
    }

    /// The blobs of an image, what refers to others after those.
    async fn blobs(&self, target: Digest) -> Result<Vec<metadata::ContentInfo>> {
        let content = self.images.store().content(self.scope);
        embed::blocking(move || {
            let (mut open, mut found) = (vec![target], Vec::<metadata::ContentInfo>::new());
            while let Some(digest) = open.pop() {
                if found.iter().any(|info| info.digest == digest) {
                    continue;
                }
                // A child that was never fetched is none of the image's here.
                let Ok(info) = content.stat(&digest) else { continue };
                let children = info.labels.iter().filter(|(key, _)| key.starts_with("containerd.io/gc.ref.content"));
                open.extend(children.filter_map(|(_, value)| value.parse::<Digest>().ok()));
                found.push(info);
            }
            found.reverse();
            Ok(found)
        })
        .await
    }

    async fn blob(&self, blob: &metadata::ContentInfo, done: &mut Document) -> Result<()> {
        if self.has_blob(&blob.digest).await? {
            done.blobs_present += 1;
            return Ok(());
        }
        if self.args.plan {
            done.blobs += 1;
            done.blob_bytes += blob.size;
            return Ok(());
        }
        let to = places::blob(self.root, &blob.digest);
        for _ in 0..TRIES {
            let mut given = Document::default();
            files::give(self.images, &blob.digest, &to, &mut given).await?;
            if let Some(left) = given.left.pop() {
                return Err(CliError::new(Class::Verification, format!("{}: {}", left.name, left.reason)));
            }
            if self.write(blob).await? {
                done.blobs += 1;
                done.blob_bytes += blob.size;
                done.shared(given.blobs, given.files.get("reflinked").copied().unwrap_or_default());
                return Ok(());
            }
        }
        let message = format!("{}: that containerd does not take content that is in its store already", blob.digest);
        Err(CliError::new(Class::Failed, message).hint(
            "its content sharing policy may be `isolated`: orlop export NAME | ctr images import - copies instead",
        ))
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        match self.to.clients.content().info(content::InfoRequest { digest: digest.to_string() }).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status.into()),
        }
    }

    /// Has that containerd take a blob into its records whose file is there; says whether it did.
    async fn write(&self, blob: &metadata::ContentInfo) -> Result<bool> {
        let reference = format!("orlop-give-{}", blob.digest);
        let size = i64::try_from(blob.size).unwrap_or(i64::MAX);
        let begin = content::WriteContentRequest {
            action: content::WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total: size,
            expected: blob.digest.to_string(),
            ..content::WriteContentRequest::default()
        };
        let commit = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            offset: size,
            labels: given_labels(&blob.labels).into_iter().collect(),
            ..begin.clone()
        };
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
        send.send(begin).await.map_err(|_| CliError::new(Class::Failed, "the write ended before it began"))?;
        let written = async {
            let mut answers = self.to.clients.content().write(requests).await?.into_inner();
            let began = answers.message().await?;
            if began.is_none_or(|began| began.offset != size) {
                return Ok(false);
            }
            // That the stream is gone, its answer says.
            let _ = send.send(commit).await;
            Ok(answers.message().await?.is_some())
        };
        match written.await {
            Err::<bool, tonic::Status>(status) if status.code() == Code::AlreadyExists => Ok(true),
            Ok(true) => Ok(true),
            Ok(false) => {
                let _ = self.to.clients.content().abort(content::AbortRequest { r#ref: reference }).await;
                Ok(false)
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Gives the layers that are unpacked here, as long as each stands on one that is there.
    async fn chain(&self, image: &ChainOf, done: &mut Document) -> Result<()> {
        let mut parent = String::new();
        for chain in &image.chain {
            if self.to.has_snapshot(chain).await? {
                done.snapshots_present += 1;
            } else if !self.is_unpacked_here(chain).await? {
                // That containerd unpacks it when it is needed.
                return Ok(());
            } else if self.args.plan {
                done.snapshots += 1;
            } else if !self.snapshot(chain, &parent, done).await? {
                return Ok(());
            }
            parent.clone_from(chain);
        }
        if self.args.plan || image.chain.is_empty() {
            return Ok(());
        }
        self.to.keep(&image.config, parent).await
    }

    async fn is_unpacked_here(&self, chain: &str) -> Result<bool> {
        let (store, scope, chain) = (self.images.store().clone(), self.scope.clone(), chain.to_owned());
        embed::blocking(move || {
            let found = store.snapshots(&scope, DRIVER).and_then(|snapshots| snapshots.stat(&chain));
            match found {
                Ok(info) => Ok(info.kind == metadata::SnapshotKind::Committed),
                Err(metadata::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(failed(error.into())),
            }
        })
        .await
    }

    /// Gives one layer; says whether its snapshotter's directories are of a form that can take it.
    async fn snapshot(&self, chain: &str, parent: &str, done: &mut Document) -> Result<bool> {
        let snapshotter = self.to.snapshotter.to_owned();
        let key = format!("orlop-give-{}-{} {chain}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            ..snapshots::PrepareSnapshotRequest::default()
        };
        let mounts = self.to.clients.snapshots().prepare(request).await?.into_inner().mounts;
        let Some(upper) = self.upper(&mounts, parent.is_empty()) else {
            self.to.remove_snapshot(key).await?;
            let reason = "its directories are not overlayfs' own: that containerd unpacks layers when they are needed";
            done.leave(snapshotter, reason);
            return Ok(false);
        };
        let linked = match self.images.give_tree(self.scope, chain, &upper).await {
            Ok(linked) => linked,
            Err(error) => {
                self.to.remove_snapshot(key).await?;
                return Err(failed(error));
            }
        };
        let commit = snapshots::CommitSnapshotRequest {
            snapshotter,
            key,
            name: chain.to_owned(),
            ..snapshots::CommitSnapshotRequest::default()
        };
        match self.to.clients.snapshots().commit(commit).await {
            Ok(_) => {
                done.snapshots += 1;
                done.snapshot_bytes += linked.bytes;
                done.shared(linked.files, linked.cloned);
            }
            Err(status) if status.code() == Code::AlreadyExists => done.snapshots_present += 1,
            Err(status) => return Err(status.into()),
        }
        Ok(true)
    }

    /// The directory that a prepared snapshot's files go to, if it is one of the overlayfs snapshotter's below the root.
    fn upper(&self, mounts: &[orlop_api::containerd::types::Mount], is_lowest: bool) -> Option<PathBuf> {
        let [mount] = mounts else { return None };
        let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
        let at = match (mount.r#type.as_str(), upper) {
            ("overlay", Some(upper)) => upper,
            ("bind", None) if is_lowest => mount.source.as_str(),
            _ => return None,
        };
        let path = PathBuf::from(at).canonicalize().ok()?;
        let root = self.root.canonicalize().ok()?;
        let inside = path.strip_prefix(&root).ok()?;
        let parts: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
        let is_own = matches!(parts[..], [directory, "snapshots", number, "fs"]
            if directory.starts_with(places::SNAPSHOTTER) && number.parse::<u64>().is_ok());
        is_own.then_some(path)
    }

    async fn record(&self, image: &Image) -> Result<()> {
        if self.args.plan {
            return Ok(());
        }
        let target = orlop_api::containerd::types::Descriptor {
            media_type: image.target.media_type.clone(),
            digest: image.target.digest.to_string(),
            size: i64::try_from(image.target.size).unwrap_or(i64::MAX),
            annotations: image.target.annotations.clone().into_iter().collect(),
        };
        let record = records::Image {
            name: image.name.clone(),
            labels: given_labels(&image.labels).into_iter().collect(),
            target: Some(target),
            ..records::Image::default()
        };
        let create = records::CreateImageRequest { image: Some(record.clone()), ..Default::default() };
        match self.to.clients.images().create(create).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            other => return other.map(drop).map_err(CliError::from),
        }
        let update = records::UpdateImageRequest { image: Some(record), ..Default::default() };
        self.to.clients.images().update(update).await?;
        Ok(())
    }
}

/// Labels that mean something elsewhere too. What is given is kept by a record, and not by itself.
fn given_labels(labels: &Labels) -> Labels {
    let own = |key: &str| key.starts_with("io.orlop.") || key == GC_ROOT || key.starts_with(GC_SNAPSHOT);
    labels.iter().filter(|(key, _)| !own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}
