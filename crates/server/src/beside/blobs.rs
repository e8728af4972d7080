//! The blobs of an image that is given to the containerd beside.
//!
//! What its content store has through Orlop's raw socket need not be copied: its owner is made to have the blob first, so that
//! containerd, which looks there, finds it whole. Whether that is so shows at the first blob: to a store of its own nothing is lent.
//!
//! # Invariants
//! - Of an owner whose containerd has another content store nothing is kept: that containerd would never remove it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use orlop_api::containerd::services::content::v1 as content;
use orlop_content::Provider as _;
use orlop_image::{CriImage, GC_CONTENT, GC_SNAPSHOT};
use orlop_metadata::{self as metadata, Labels, ScopedContent};
use orlop_oci::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::calls::Calls;
use crate::blocking::blocking;
use crate::convert::signed;
use crate::raw::Raw;
use crate::status::ToStatus;

/// Before a layer's place, on a manifest: what containerd keeps with it ([`GC_CONTENT`]).
const LAYER: &str = "containerd.io/gc.ref.content.l.";
/// What the labels begin with that containerd is given.
const THEIRS: &str = "containerd.io/";

/// Bytes of a blob in one message.
const PIECE: usize = 1 << 20;

/// A blob to give.
pub(super) struct Blob {
    digest: Digest,
    size: u64,
    labels: Labels,
    is_layer: bool,
}

/// Whose the content store of that containerd is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shelf {
    Unknown,
    /// Orlop's, through the raw socket.
    Ours,
    Theirs,
}

/// Gives blobs of one image.
pub(super) struct Giving<'a> {
    calls: &'a Calls,
    content: ScopedContent,
    raw: Raw,
    shelf: Shelf,
    /// Whether layers are left out that would have to be copied.
    spares_layers: bool,
}

/// What an image is made of, as far as it is here: what its documents name, from the target down. `top` is the snapshot that containerd
/// is to keep with it, and its snapshotter.
pub(super) async fn of(
    content: &ScopedContent,
    image: &CriImage,
    target: &Digest,
    top: Option<(&str, &str)>,
) -> Result<Vec<Blob>, Status> {
    let (content, target, config) = (content.clone(), target.clone(), image.gist.id.digest().clone());
    let snapshot = top.map(|(snapshotter, chain)| (format!("{GC_SNAPSHOT}{snapshotter}"), chain.to_owned()));
    blocking(move || {
        let (mut found, mut known) = (Vec::new(), BTreeSet::from([target.clone()]));
        let mut open = vec![(target, false)];
        while let Some((digest, is_layer)) = open.pop() {
            let info = match content.stat(&digest) {
                Ok(info) => info,
                // Another platform's.
                Err(metadata::Error::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            for (child, is_layer) in children(&info.labels) {
                if known.insert(child.clone()) {
                    open.push((child, is_layer));
                }
            }
            let mut labels = info.labels;
            labels.retain(|key, _| key.starts_with(THEIRS) && !key.starts_with(GC_SNAPSHOT));
            labels.extend(snapshot.clone().filter(|_| digest == config));
            found.push(Blob { digest, size: info.size, labels, is_layer });
        }
        Ok::<_, metadata::Error>(found)
    })
    .await
}

/// The children that a document's labels name, and whether each is a layer.
fn children(labels: &BTreeMap<String, String>) -> Vec<(Digest, bool)> {
    let child = |(key, value): (&String, &String)| {
        key.starts_with(GC_CONTENT).then(|| value.parse().ok().map(|digest| (digest, key.starts_with(LAYER)))).flatten()
    };
    labels.iter().filter_map(child).collect()
}

impl<'a> Giving<'a> {
    pub(super) const fn new(calls: &'a Calls, content: ScopedContent, raw: Raw, spares_layers: bool) -> Self {
        Self { calls, content, raw, shelf: Shelf::Unknown, spares_layers }
    }

    /// Makes a blob be there, with its labels.
    pub(super) async fn give(&mut self, blob: &Blob) -> Result<(), Status> {
        let may_lend = self.shelf != Shelf::Theirs && blob.size > 0;
        let mut lent = may_lend && self.raw.lend_blob(&blob.digest, blob.size).await?;
        let reference = format!("orlop-{:016x}-{}", rand::random::<u64>(), blob.digest);
        let written = self.write(blob, &reference, &mut lent).await;
        if lent {
            self.raw.take_back_blob(&blob.digest).await?;
        }
        match written {
            Ok(()) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => self.relabel(blob).await,
            Err(status) => {
                drop(self.abort(reference).await);
                Err(status)
            }
        }
    }

    /// What was `lent` is settled as soon as containerd has said where the write begins.
    async fn write(&mut self, blob: &Blob, reference: &str, lent: &mut bool) -> Result<(), Status> {
        let (sender, receiver) = mpsc::channel(1);
        let message = |action: content::WriteAction, offset: u64, data: Bytes| content::WriteContentRequest {
            action: action.into(),
            r#ref: reference.to_owned(),
            total: signed(blob.size),
            expected: blob.digest.to_string(),
            offset: signed(offset),
            data,
            labels: BTreeMap::new(),
        };
        // A server that has ended the call says why in its answer.
        drop(sender.send(message(content::WriteAction::Stat, 0, Bytes::new())).await);
        let mut answers = self.calls.content().write(ReceiverStream::new(receiver)).await?.into_inner();
        let mut offset = u64::try_from(next(&mut answers).await?.offset).unwrap_or_default();
        if std::mem::take(lent) {
            if offset == blob.size {
                self.shelf = Shelf::Ours;
            } else {
                // Before any byte is written: what comes through the raw socket from now on is that containerd's own.
                self.raw.take_back_blob(&blob.digest).await?;
                if self.shelf == Shelf::Unknown {
                    self.shelf = Shelf::Theirs;
                }
            }
        }
        if offset < blob.size && blob.is_layer && self.spares_layers {
            // The write has to have ended before it can be aborted.
            drop(sender);
            while answers.message().await?.is_some() {}
            return self.abort(reference.to_owned()).await;
        }
        let reader = self.content.open(&blob.digest).await.map_err(|e| e.to_status())?;
        while offset < blob.size {
            let data = reader.read_at(offset, PIECE).await.map_err(|e| e.to_status())?;
            if data.is_empty() {
                let Blob { digest, size, .. } = blob;
                return Err(Status::data_loss(format!("blob {digest} ended at {offset} instead of {size}")));
            }
            let length = data.len() as u64;
            drop(sender.send(message(content::WriteAction::Write, offset, data)).await);
            next(&mut answers).await?;
            offset += length;
        }
        let commit = message(content::WriteAction::Commit, offset, Bytes::new());
        drop(sender.send(content::WriteContentRequest { labels: blob.labels.clone(), ..commit }).await);
        next(&mut answers).await.map(drop)
    }

    async fn abort(&self, reference: String) -> Result<(), Status> {
        self.calls.content().abort(content::AbortRequest { r#ref: reference }).await.map(drop)
    }

    /// Adds the labels to a blob that is there: whoever brought it may not have known what it is for.
    async fn relabel(&self, blob: &Blob) -> Result<(), Status> {
        if blob.labels.is_empty() {
            return Ok(());
        }
        let paths = blob.labels.keys().map(|key| format!("labels.{key}")).collect();
        let (digest, labels) = (blob.digest.to_string(), blob.labels.clone());
        let info = Some(content::Info { digest, labels, ..content::Info::default() });
        let update_mask = Some(prost_types::FieldMask { paths });
        self.calls.content().update(content::UpdateRequest { info, update_mask }).await.map(drop)
    }
}

/// Each request is answered by one response.
async fn next(answers: &mut Streaming<content::WriteContentResponse>) -> Result<content::WriteContentResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unavailable("the write ended without an answer"))
}
