//! Mending what is damaged: bytes that are not what they were are set aside, and sound ones take their place.
//!
//! ```text
//! blob: examine ──▶ set aside (ROOT/quarantine, with a row of what is wrong) ──▶ bring by digest ──▶ the row goes
//!                                                                          registry, mirror, archive
//! tree: compare ──▶ a row of what is wrong ──▶ unpack its layer beside it, verified ──▶ they change places, the row goes
//!                                               └ one that is not here, or damaged, is brought as a blob is
//! ```
//!
//! # Invariants
//! - What is brought has the digest of what is mended, and no record is written: nothing comes in that was not there.
//! - Without sound bytes anywhere, what is damaged stays set aside, and everything else as it is: records, labels, snapshots,
//!   containers. So it can be mended later, by this or by any pull or import that brings the digest.
//! - A tree is changed beneath nobody: what stands on it is named, and it is left.
//! - A plan changes nothing.

mod bring;
mod layers;
mod sources;
mod trees;

use std::collections::BTreeMap;

use orlop_content as content;
use orlop_metadata::{Affected, Damage, Damaged, Image, Scope, Store, Tree};
use orlop_oci::Digest;
use orlop_remote::Client;
use tokio::io::AsyncRead;

use crate::{Error, Images, Result, Sink, check};
use sources::Sources;

/// What to mend, and how it is found.
#[derive(Debug, Clone, Default)]
pub struct RepairRequest {
    /// An image, or a blob by its digest; `None`: the whole store.
    pub name: Option<String>,
    /// Only what was found before, by a scrub or a repair; else everything that is wanted is read.
    pub known: bool,
    /// Say what would be done; change nothing.
    pub plan: bool,
}

/// From whom sound bytes may come.
pub enum Bringer<'a> {
    /// The registries that the blob came from, or that its images are named after, and their mirrors.
    Registries(&'a Client),
    /// An archive.
    Archive(&'a mut (dyn AsyncRead + Send + Unpin)),
}

/// Something damaged, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mending {
    /// What it is.
    pub what: Damaged,
    /// A digest, or `<driver>/<key>`.
    pub subject: String,
    /// Bytes that it has when it is sound.
    pub size: u64,
    /// `missing`, `size`, `damaged`, `unreadable`.
    pub fault: String,
    /// What was expected and what was found.
    pub detail: String,
    /// Whom it concerns, by namespace.
    pub affected: Vec<Affected>,
    /// Whom sound bytes are asked of, in this order; of a tree: the layers that it is unpacked from.
    pub sources: Vec<String>,
    /// The entry of the quarantine that the damaged bytes are in.
    pub quarantine: Option<String>,
    /// What became of it.
    pub end: End,
}

/// What became of something damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nothing yet: it is a plan.
    Planned,
    /// It is what it was.
    Mended {
        /// Whom the sound bytes came from.
        from: String,
    },
    /// It is damaged still.
    Left {
        /// Why.
        reason: String,
        /// What to do.
        advice: String,
    },
}

/// What a repair came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Each damaged thing.
    pub mendings: Vec<Mending>,
    /// Blobs that were read.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Trees that were compared.
    pub trees: u64,
    /// Bytes of their files.
    pub tree_bytes: u64,
}

impl Images {
    /// Looks for damage and mends it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such image or blob; what cannot be mended is no error but said in the result.
    ///
    /// # Cancellation
    /// What was set aside stays so; the next repair goes on.
    pub async fn repair(
        &self,
        scope: &Scope,
        bringer: Bringer<'_>,
        request: &RepairRequest,
        sink: Sink<'_>,
    ) -> Result<Repaired> {
        let wanted = self.wanted(scope, request).await?;
        let mut repaired = Repaired::default();
        for (digest, size) in wanted {
            if let Some(mending) = self.examine(&digest, size, request.plan, &mut repaired).await? {
                repaired.mendings.push(mending);
            }
        }
        let trees = self.damaged_trees(scope, request, &mut repaired).await?;
        if request.plan {
            repaired.mendings.extend(trees.into_iter().map(|damaged| damaged.mending));
            return Ok(repaired);
        }
        match bringer {
            // Trees come last: by then layers are as sound as they get.
            Bringer::Registries(client) => {
                self.bring_all(scope, client, &mut repaired.mendings, sink).await?;
                self.heal_trees(Some(client), trees, &mut repaired, sink).await?;
            }
            Bringer::Archive(archive) if !(repaired.mendings.is_empty() && trees.is_empty()) => {
                let all = repaired.mendings.iter().chain(trees.iter().map(|damaged| &damaged.mending));
                let namespace =
                    all.flat_map(|mending| &mending.affected).map(|affected| affected.namespace.clone()).next();
                let scope = Scope { namespace: namespace.unwrap_or_else(|| scope.namespace.clone()), ..scope.clone() };
                self.under_lease(&scope, async |scope| {
                    self.bring_archive(scope, archive, &mut repaired.mendings, sink).await?;
                    self.heal_trees(None, trees, &mut repaired, sink).await
                })
                .await?;
            }
            Bringer::Archive(_) => {}
        }
        Ok(repaired)
    }

    /// The blobs that a request is about, with their sizes.
    async fn wanted(&self, scope: &Scope, request: &RepairRequest) -> Result<BTreeMap<Digest, u64>> {
        let Some(text) = &request.name else {
            let known = request.known;
            return self.blocking(move |store| if known { known_blobs(store) } else { check::all_blobs(store) }).await;
        };
        let record = self.record_of(scope, text).await?;
        let (scope, text, known) = (scope.clone(), text.clone(), request.known);
        self.blocking(move |store| {
            let digests = match record {
                Some(record) => store.reached_blobs(&scope.namespace, &record.name)?,
                None => text.parse().into_iter().collect(),
            };
            let all = sizes(store, digests)?;
            if all.is_empty() {
                return Err(Error::NotFound(text));
            }
            let damaged = if known { known_blobs(store)? } else { all.clone() };
            Ok(all.into_iter().filter(|(digest, _)| damaged.contains_key(digest)).collect())
        })
        .await
    }

    /// The record that a name means; `None`: it is the digest of a blob.
    async fn record_of(&self, scope: &Scope, text: &str) -> Result<Option<Image>> {
        match self.named_record(scope, text).await? {
            None if text.parse::<Digest>().is_err() => {
                let found = self.resolve_name(scope, text).await?;
                let first = found.names.first().cloned().ok_or_else(|| Error::NotFound(text.to_owned()))?;
                self.named_record(scope, &first).await
            }
            record => Ok(record),
        }
    }

    /// Reads a blob; what is damaged is set aside, unless it is only planned.
    async fn examine(
        &self,
        digest: &Digest,
        size: u64,
        plan: bool,
        repaired: &mut Repaired,
    ) -> Result<Option<Mending>> {
        let raw = self.store().raw_content();
        let flaw = content::examine(&**raw, digest, Some(size), &()).await?;
        repaired.blobs += 1;
        repaired.blob_bytes += size;
        let (what, digest) = (Damaged::Blob(digest.clone()), digest.clone());
        self.blocking(move |store| {
            let known = store.damage_of(&what)?;
            let damage = match flaw {
                None if plan || known.is_none() => None,
                // Sound again, or damaged and not yet set aside.
                _ if !plan => store.quarantine_blob(&digest)?,
                Some(flaw) => Some(known.unwrap_or_else(|| Damage {
                    what: what.clone(),
                    fault: flaw.as_str().to_owned(),
                    detail: flaw.to_string(),
                    quarantine: None,
                    found_at: jiff::Timestamp::now(),
                })),
                None => None,
            };
            damage.map(|damage| mending(store, damage, digest, size)).transpose()
        })
        .await
    }
}

fn mending(store: &Store, damage: Damage, digest: Digest, size: u64) -> Result<Mending> {
    let Damage { what, fault, detail, quarantine, .. } = damage;
    let sources = Sources::of(store, &digest)?;
    Ok(Mending {
        affected: store.affected(&what)?,
        subject: digest.to_string(),
        sources: sources.repositories.iter().map(ToString::to_string).collect(),
        end: End::Planned,
        what,
        size,
        fault,
        detail,
        quarantine,
    })
}

fn scope_of(tree: &Tree) -> Scope {
    Scope::new(tree.namespace.clone(), "repair")
}

fn known_blobs(store: &Store) -> Result<BTreeMap<Digest, u64>> {
    let damages = store.damages()?.into_iter().filter_map(|damage| match damage.what {
        Damaged::Blob(digest) => Some(digest),
        Damaged::Snapshot { .. } => None,
    });
    sizes(store, damages.collect())
}

/// The sizes of those blobs that there are.
fn sizes(store: &Store, digests: Vec<Digest>) -> Result<BTreeMap<Digest, u64>> {
    let mut found = BTreeMap::new();
    for digest in digests {
        if let Some((_, size, _)) = store.blob_rows(&digest)?.into_iter().next() {
            found.insert(digest, size);
        }
    }
    Ok(found)
}
