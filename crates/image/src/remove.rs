//! Removing: a plan, its hash, and its execution.
//!
//! # Invariants
//! - What is executed is what the plan says: the plan is made, compared with the hash that was given, and executed in one
//!   state of the database. If anything was committed in between, the transaction does nothing and the plan is made anew.
//! - Beside writers that never pause, a removal that was given no hash is executed all the same, unless something changed that has to
//!   do with its own images ([`Doomed::is_outdated`]): then the same records go as if it had been alone, and what others did meanwhile
//!   to what these share is in the collection that follows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use orlop_metadata::gc::{Disposal, Report};
use orlop_metadata::{self as metadata, HistoryEntry, Image, ImageChange, Scope};
use orlop_oci::{Descriptor, Digest};

use crate::catalog::Catalog;
use crate::reconcile::{self, Facts, is_name, is_pinned};
use crate::supply::{self, Supply};
use crate::users::Users;
use crate::{Error, Images, Result, SnapshotRow, labels};

/// How often what was decided is decided again because somebody writes at the same time.
pub(crate) const ATTEMPTS: usize = 20;

/// How many of these insist on a state in which nobody else wrote anything at all.
const STRICT: usize = 5;

/// What to remove.
#[derive(Debug, Clone, Default)]
pub struct RemoveRequest {
    /// Names, digests, image IDs or prefixes; see [`Images::plan_remove`].
    pub names: Vec<String>,
    /// Execute only if the plan has this hash.
    pub plan: Option<String>,
    /// Also what is pinned.
    pub force: bool,
    /// Give the space back at once instead of keeping it for undo.
    pub no_trash: bool,
    /// Only records of these very names and the image IDs that only they need: a manifest that was pushed to the store's own
    /// registry stays when its last tag goes.
    pub keep_pushed: bool,
    /// What the trash says that it was; none: `rm` and the names.
    pub reason: Option<String>,
}

/// A name and why it is listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Reason {
    /// A record, a blob or an image.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What a removal would do.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Plan {
    /// `sha256:…` over everything below.
    #[serde(skip)]
    pub hash: String,
    /// Bytes that the file system gets back at once.
    pub freed_now: u64,
    /// Bytes that it gets back when the trash empties.
    pub freed_when_trash_empties: u64,
    /// Bytes that go and that it does not get back, since files outside this store have them too.
    pub elsewhere: u64,
    /// Records that go.
    pub records: Vec<String>,
    /// Blobs that go.
    pub blobs: Vec<Descriptor>,
    /// Snapshots that go.
    pub snapshots: Vec<SnapshotRow>,
    /// Records that come back at once, and why.
    pub returns: Vec<Reason>,
    /// Images that no registry is known to supply.
    pub unpullable: Vec<Reason>,
    /// What keeps the rest.
    pub in_use: Vec<Reason>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq)]
pub struct Removed {
    /// The plan that was executed.
    pub plan: Plan,
    /// Names the undo; none if nothing went to the trash.
    pub trash: Option<String>,
    /// Records that came back at once.
    pub returned: Vec<String>,
}

/// The records a removal deletes, and what follows.
#[derive(Debug, Default)]
struct Doomed {
    /// Names of records, sorted.
    names: BTreeSet<String>,
    /// Of those: what the reconciler writes again at once.
    returns: Vec<Reason>,
    /// What they point at.
    targets: BTreeSet<Digest>,
}

/// A state of the store that something is decided on.
#[derive(Debug, Clone, Copy)]
struct State {
    version: i64,
    /// The last change of a record.
    change: i64,
}

impl Doomed {
    /// Whether what happened since might have made it another removal: to these records, or to their images.
    fn is_outdated(&self, since: &[HistoryEntry]) -> bool {
        since.iter().any(|change| {
            let targets = [&change.old, &change.new].into_iter().flatten();
            self.names.contains(&change.name) || targets.into_iter().any(|digest| self.targets.contains(digest))
        })
    }
}

impl Images {
    /// What removing would do. Changes nothing.
    ///
    /// A name takes with it the hash references that only it needs. A hash reference given by its full name is that
    /// record alone, and comes back if a name needs it. Any other digest or prefix stands for the whole image.
    pub async fn plan_remove(&self, scope: &Scope, request: &RemoveRequest) -> Result<Plan> {
        let catalog = self.concerned(scope, request).await?;
        let (plan, _) = self.plan_with(scope, &catalog, request).await?;
        Ok(plan)
    }

    /// Removes.
    ///
    /// # Errors
    /// [`Error::StalePlan`] if the state has moved, [`Error::Pinned`] without `force`.
    pub async fn remove(&self, scope: &Scope, request: &RemoveRequest) -> Result<Removed> {
        let mut met = None;
        for attempt in 0..ATTEMPTS {
            let strict = request.plan.is_some() || attempt < STRICT;
            let state = self.state().await?;
            let (plan, trash, gone) = match self.try_remove(scope, request, state, strict).await {
                // Somebody wrote since the plan was made: perhaps nothing that it depends on, so it is made again.
                Err(Error::Metadata(metadata::Error::Moved)) => {
                    met = None;
                    continue;
                }
                // What was read may be of two states: of the names, and of what somebody else has taken away since.
                Err(error) if is_gone(&error) && self.state().await?.version != state.version => {
                    met = Some(error);
                    continue;
                }
                removed => removed?,
            };
            let returned = self.reconcile_removed(&scope.namespace, gone.names, gone.targets).await?.created;
            return Ok(Removed { plan, trash, returned });
        }
        Err(met.unwrap_or_else(|| metadata::Error::Moved.into()))
    }

    async fn state(&self) -> Result<State> {
        self.blocking(|store| Ok(State { version: store.version()?, change: store.last_change()? })).await
    }

    /// Makes the plan, compares it with the one that was asked for, and executes it, if `strict` in the state it was made for.
    async fn try_remove(
        &self,
        scope: &Scope,
        request: &RemoveRequest,
        state: State,
        strict: bool,
    ) -> Result<(Plan, Option<String>, Doomed)> {
        let catalog = self.concerned(scope, request).await?;
        let (plan, doomed) = self.plan_with(scope, &catalog, request).await?;
        if let Some(given) = request.plan.as_ref().filter(|given| **given != plan.hash) {
            return Err(Error::StalePlan { given: given.clone(), current: plan.hash });
        }
        let (owned, changes) = (scope.clone(), deletions(&doomed.names));
        let disposal = match request.no_trash {
            true => Disposal::Reclaim,
            false => Disposal::Trash {
                reason: request.reason.clone().unwrap_or_else(|| format!("rm {}", request.names.join(" "))),
            },
        };
        self.blocking(move |store| {
            let report = match strict {
                true => store.delete_images(&owned, &changes, &disposal, Some(state.version))?,
                false => {
                    let outdated = |since: &[HistoryEntry]| doomed.is_outdated(since);
                    store.delete_images_decided_at(&owned, &changes, &disposal, state.change, outdated)?
                }
            };
            Ok((plan, report.trash, doomed))
        })
        .await
    }

    /// What a plan has to know of: the records that are meant, all that have to do with their images, and who else has any of
    /// their blobs.
    async fn concerned(&self, scope: &Scope, request: &RemoveRequest) -> Result<Catalog> {
        let (mut near, mut shared) = (BTreeSet::new(), BTreeSet::new());
        for text in &request.names {
            let target = match self.named_record(scope, text).await? {
                Some(record) => record.target,
                None => self.resolve_name(scope, text).await?.target,
            };
            near.insert(target.digest);
        }
        loop {
            let digests = near.union(&shared).cloned().collect();
            let Some(records) = self.kin_records(scope, digests).await? else { return self.catalog(scope).await };
            let records = self.with_hashes(scope, records, &near).await?;
            let catalog = self.partial_catalog(scope, records).await?;
            let known = (near.len(), shared.len());
            for record in &catalog.records {
                let own = self.own_digests(&catalog, record);
                if own.iter().any(|digest| near.contains(digest)) {
                    near.extend(own);
                    shared.extend(catalog.blobs(&record.target).into_keys());
                }
            }
            if (near.len(), shared.len()) == known {
                return Ok(catalog);
            }
        }
    }

    async fn plan_with(&self, scope: &Scope, catalog: &Catalog, request: &RemoveRequest) -> Result<(Plan, Doomed)> {
        let users = self.users(&scope.namespace).await?;
        let doomed = self.doomed(scope, catalog, &users, request).await?;
        let back: BTreeSet<&str> = doomed.returns.iter().map(|r| r.name.as_str()).collect();
        let going = doomed.names.iter().filter(|name| !back.contains(name.as_str()));
        let without: Vec<(String, String)> = going.map(|name| (scope.namespace.clone(), name.clone())).collect();
        let (owned, mut known) = (scope.clone(), catalog.clone());
        let (with, before, known) = self
            .blocking(move |store| {
                let (with, before) = (store.plan_collection(&without)?, store.plan_collection(&[])?);
                known.describe(freed(&with, &before), store, &owned)?;
                Ok((with, before, known))
            })
            .await?;
        let bytes = with.freed().saturating_sub(before.freed());
        let mut plan = Plan {
            hash: String::new(),
            freed_now: if request.no_trash { bytes } else { 0 },
            freed_when_trash_empties: if request.no_trash { 0 } else { bytes },
            elsewhere: with.elsewhere_bytes.saturating_sub(before.elsewhere_bytes),
            records: doomed.names.iter().cloned().collect(),
            blobs: blobs(&known, &with, &before),
            snapshots: self.plan_snapshots(scope, &with, &before).await?,
            returns: doomed.returns.clone(),
            unpullable: self.unpullable(scope, catalog, &doomed).await?,
            in_use: self.in_use(catalog, &users, &doomed, &with),
        };
        plan.hash = plan.digest()?;
        Ok((plan, doomed))
    }

    /// Which records the request means, with the hash references that only they need.
    async fn doomed(&self, scope: &Scope, catalog: &Catalog, users: &Users, request: &RemoveRequest) -> Result<Doomed> {
        let mut doomed = Doomed::default();
        for text in &request.names {
            match self.named_record(scope, text).await? {
                Some(record) => drop(doomed.names.insert(record.name)),
                None => {
                    let found = self.resolve_name(scope, text).await?;
                    let siblings = self.siblings(catalog, &found.target.digest);
                    doomed.names.extend(siblings.into_iter().map(|r| r.name.clone()));
                }
            }
        }
        let pinned = |name: &&String| catalog.records.iter().any(|r| r.name == **name && is_pinned(&r.labels));
        if let Some(name) = doomed.names.iter().find(pinned).filter(|_| !request.force) {
            return Err(Error::Pinned(name.clone()));
        }
        if self.settings().is_cri(&scope.namespace) {
            self.follow(catalog, users, &mut doomed, request.keep_pushed);
        }
        let going = catalog.records.iter().filter(|record| doomed.names.contains(&record.name));
        doomed.targets = going.map(|record| record.target.digest.clone()).collect();
        Ok(doomed)
    }

    /// Lets the reconciler say what follows: stranded hash references go too, needed ones come back.
    fn follow(&self, catalog: &Catalog, users: &Users, doomed: &mut Doomed, keep_pushed: bool) {
        let gone = |record: &Image| doomed.names.contains(&record.name);
        let targets: BTreeSet<&Digest> = catalog.records.iter().filter(|r| gone(r)).map(|r| &r.target.digest).collect();
        let repositories: BTreeSet<&str> = doomed.names.iter().map(|name| repository_of(name)).collect();
        let mut rest: Vec<Image> = catalog.records.iter().filter(|r| !gone(r)).cloned().collect();
        for record in rest.iter_mut().filter(|r| !is_name(r) && targets.contains(&r.target.digest)) {
            // A pin that is overridden does not keep the hash references either.
            record.labels.remove(labels::PINNED);
            // Nor is a manifest kept in the repository from which people remove it.
            if !keep_pushed && repositories.contains(repository_of(&record.name)) {
                record.labels.remove(labels::PUSHED);
            }
        }
        let image = |target: &Digest| catalog.complete_image(target, self.platform());
        let facts = Facts {
            image: &image,
            deleted: &|target| targets.contains(target),
            used: &|target| !users.of(catalog, target).is_empty(),
            pins: &[],
            now: Timestamp::now(),
            grace_seconds: i64::MAX,
        };
        let mut names = doomed.names.clone();
        for change in reconcile::changes(&rest, &facts) {
            match change {
                ImageChange::Delete { name } => drop(names.insert(name)),
                ImageChange::Upsert { name, target, .. } if doomed.names.contains(&name) => {
                    let reason = match rest.iter().find(|r| is_name(r) && r.target.digest == target.digest) {
                        Some(by) => format!("{} needs it", by.name),
                        None => "a name of the image needs it".to_owned(),
                    };
                    doomed.returns.push(Reason { name, reason });
                }
                ImageChange::Upsert { .. } => {}
            }
        }
        doomed.names = names;
        doomed.returns.sort();
    }

    async fn plan_snapshots(&self, scope: &Scope, with: &Report, before: &Report) -> Result<Vec<SnapshotRow>> {
        let keys: Vec<_> = with.snapshots.difference(&before.snapshots).cloned().collect();
        let scope = scope.clone();
        self.blocking(move |store| {
            let mut rows = Vec::new();
            for (namespace, driver, key) in keys {
                let scope = Scope { namespace, ..scope.clone() };
                let usage = match store.snapshots(&scope, &driver)?.usage(&key) {
                    // Another removal took it since.
                    Err(metadata::Error::NotFound { .. }) => continue,
                    usage => usage?,
                };
                rows.push(SnapshotRow { chain_id: key, snapshotter: driver, bytes: usage.bytes, inodes: usage.inodes });
            }
            Ok(rows)
        })
        .await
    }

    /// Images that lose their last record and came from no registry that is known.
    async fn unpullable(&self, scope: &Scope, catalog: &Catalog, doomed: &Doomed) -> Result<Vec<Reason>> {
        let lost: BTreeSet<Digest> = self.lost_targets(catalog, doomed);
        let scope = scope.clone();
        self.blocking(move |store| {
            let content = store.content(&scope);
            let mut reasons = Vec::new();
            for digest in lost {
                let supply = match content.stat(&digest) {
                    Ok(info) => supply::supply(&info.labels),
                    Err(metadata::Error::NotFound { .. }) => Supply::Known,
                    Err(error) => return Err(error.into()),
                };
                let reason = match supply {
                    Supply::Known => continue,
                    Supply::Unknown => "it was imported or made here: no registry is known to have it".to_owned(),
                    Supply::Gone(from) => format!("{} had it once and has it no more", from.join(", ")),
                };
                reasons.push(Reason { name: digest.to_string(), reason });
            }
            Ok(reasons)
        })
        .await
    }

    /// Targets that no record is left for.
    fn lost_targets(&self, catalog: &Catalog, doomed: &Doomed) -> BTreeSet<Digest> {
        let back: BTreeSet<&str> = doomed.returns.iter().map(|r| r.name.as_str()).collect();
        let goes = |r: &&Image| doomed.names.contains(&r.name) && !back.contains(r.name.as_str());
        let kept: BTreeSet<&Digest> = catalog.records.iter().filter(|r| !goes(r)).map(|r| &r.target.digest).collect();
        let gone = catalog.records.iter().filter(goes).map(|r| r.target.digest.clone());
        gone.filter(|digest| !kept.contains(digest)).collect()
    }

    /// Why blobs and snapshots of the removed records stay. Every record is looked at once, however many are removed.
    fn in_use(&self, catalog: &Catalog, users: &Users, doomed: &Doomed, with: &Report) -> Vec<Reason> {
        let gone: BTreeSet<&str> = with.content.iter().map(|(_, digest)| digest.as_str()).collect();
        let (going, staying): (Vec<&Image>, Vec<&Image>) =
            catalog.records.iter().partition(|r| doomed.names.contains(&r.name));
        let by_containers = going.iter().flat_map(|r| {
            let reason = |id: &str| format!("the container {id} runs on it: its snapshots stay");
            let target = &r.target.digest;
            users.of(catalog, target).into_iter().map(move |id| Reason { name: target.to_string(), reason: reason(id) })
        });
        let mut reasons: BTreeSet<Reason> = by_containers.collect();
        let targets: BTreeMap<&Digest, &Image> = going.iter().map(|r| (&r.target.digest, *r)).collect();
        let there = |d: &Digest| catalog.content.contains_key(d) && !gone.contains(d.as_str());
        let kept: Vec<(&Digest, Vec<Digest>)> = targets
            .into_iter()
            .map(|(target, record)| (target, catalog.blobs(&record.target).into_keys().filter(there).collect()))
            .collect();
        let mut users: HashMap<&Digest, BTreeSet<&str>> =
            kept.iter().flat_map(|(_, blobs)| blobs).map(|digest| (digest, BTreeSet::new())).collect();
        for record in staying {
            for digest in catalog.blobs(&record.target).keys() {
                if let Some(names) = users.get_mut(digest) {
                    names.insert(&record.name);
                }
            }
        }
        let nonempty = kept.iter().filter(|(_, blobs)| !blobs.is_empty());
        reasons.extend(nonempty.map(|(target, blobs)| {
            let names: BTreeSet<&str> = blobs.iter().flat_map(|d| users[d].iter().copied()).collect();
            Reason { name: target.to_string(), reason: why_kept(blobs.len(), &names) }
        }));
        reasons.into_iter().collect()
    }
}

/// Whether something that is not what was asked for is not there.
const fn is_gone(error: &Error) -> bool {
    matches!(
        error,
        Error::Metadata(metadata::Error::NotFound { .. }) | Error::Content(orlop_content::Error::NotFound { .. })
    )
}

/// The repository in the name of a record, if it is one of a repository.
fn repository_of(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(repository, _)| repository);
    name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(repository, _)| repository)
}

fn why_kept(blobs: usize, names: &BTreeSet<&str>) -> String {
    match names.first() {
        Some(first) if names.len() == 1 => format!("{blobs} of its blobs stay: {first} uses them"),
        Some(first) => format!("{blobs} of its blobs stay: {first} and {} more records use them", names.len() - 1),
        None => format!("{blobs} of its blobs stay: a lease, a label or another namespace holds them"),
    }
}

impl Plan {
    /// The digest of the plan's canonical JSON: fields in their order, lists sorted.
    fn digest(&self) -> Result<String> {
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::Stream { operation: "encode plan", source: error.into() })?;
        Ok(Digest::of(&json).to_string())
    }
}

fn deletions(names: &BTreeSet<String>) -> Vec<ImageChange> {
    names.iter().map(|name| ImageChange::Delete { name: name.clone() }).collect()
}

/// The digests of blobs that only this removal frees.
fn freed(with: &Report, before: &Report) -> BTreeSet<Digest> {
    with.content.difference(&before.content).filter_map(|(_, digest)| digest.parse().ok()).collect()
}

/// Blobs that only this removal frees, each once.
fn blobs(catalog: &Catalog, with: &Report, before: &Report) -> Vec<Descriptor> {
    let describe = |digest: Digest| {
        let media_type = catalog.summaries.get(&digest).map(|s| s.media_type.clone()).unwrap_or_default();
        let size = catalog.content.get(&digest).copied().unwrap_or_default();
        Descriptor::new(media_type, digest, size)
    };
    freed(with, before).into_iter().map(describe).collect()
}
