//! The reconciler of hash references (design §7).
//!
//! For every *name* in a CRI-managed namespace whose image is complete for the host's platform, its image ID record and
//! its digest record exist, carry the managed label and point at a target of that image. A name is a tag, any other
//! text, or a digest reference that somebody asked for by digest. A hash reference that no name needs is *stranded*: it
//! goes at once if the last name was deleted, after a grace period if a tag moved away, and never while it is pinned, a
//! container stands on its image, or it keeps a manifest that was pushed here ([`crate::accept`]).
//!
//! [`changes`] decides, without I/O; it is idempotent: applied to its own result it changes nothing.
//!
//! # Concurrency
//! Records are read, then changes are decided, then written; others go on meanwhile. So a change is written only if
//! nothing has happened since to the record itself or to a record of the same image ([`Since`]), and a hash reference is
//! taken away only if no container has come to stand on its image; else it is decided anew. A name that was deleted does
//! not come back, nor does one that was moved go back.
//!
//! [`pass`] goes through all records without holding them, [`near`] finds those that some changes have to do with.

mod groups;
mod near;
mod pass;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use orlop_metadata::{HistoryAction, HistoryEntry, Image, ImageChange, Labels, Scope};
use orlop_oci::{Descriptor, Digest, ImageId, Kind, Reference, classify};
use tracing::field::Empty;
use tracing::info_span;

use self::near::Near;
use crate::catalog::Catalog;
use crate::pull::record_labels;
use crate::span::within;
use crate::users::Users;
use crate::{Images, Result, Settings, labels};

/// What the reconciler calls itself in the history.
pub const RECONCILER: &str = "reconciler";
/// Rounds after which a pass gives up on a namespace that others keep changing.
const ROUNDS: usize = 8;
/// Changes looked at to learn how a hash reference came to be stranded.
const HISTORY: usize = 10_000;

/// What a pass changed; all empty: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Hash references created.
    pub created: Vec<String>,
    /// Records that got labels or another target.
    pub updated: Vec<String>,
    /// Stranded hash references removed.
    pub removed: Vec<String>,
}

/// What [`changes`] must know besides the records.
pub(crate) struct Facts<'a> {
    /// The image ID of a target for the host, if that image is complete.
    pub(crate) image: &'a (dyn Fn(&Digest) -> Option<ImageId> + Sync),
    /// Whether the last name of a target was deleted, not moved.
    pub(crate) deleted: &'a (dyn Fn(&Digest) -> bool + Sync),
    /// Whether a container stands on an image of a target.
    pub(crate) used: &'a (dyn Fn(&Digest) -> bool + Sync),
    /// Names that the configuration pins, in normal form.
    pub(crate) pins: &'a [String],
    pub(crate) now: Timestamp,
    pub(crate) grace_seconds: i64,
}

/// Whether a record is a name: something that hash references are derived from.
pub(crate) fn is_name(record: &Image) -> bool {
    is_name_of(classify(&record.name), &record.labels)
}

/// The same for a kind of name with these labels.
pub(crate) fn is_name_of(kind: Kind, map: &Labels) -> bool {
    match kind {
        Kind::Tag | Kind::Other => true,
        Kind::Digest => {
            let is_asked_for = map.contains_key(labels::REQUESTED) || map.contains_key(labels::CACHED);
            is_asked_for || !(is_managed(map) || is_pushed(map))
        }
        Kind::Id => false,
    }
}

/// The digest that a hash reference's name has.
pub(crate) fn digest_of(name: &str) -> Option<Digest> {
    name.rsplit_once('@').map_or(name, |(_, digest)| digest).parse().ok()
}

pub(crate) fn is_managed(map: &Labels) -> bool {
    map.get(labels::MANAGED).is_some_and(|v| v == labels::MANAGED_VALUE)
}

/// Whether a record keeps what was pushed to this store's own registry.
pub(crate) fn is_pushed(map: &Labels) -> bool {
    map.contains_key(labels::PUSHED)
}

pub(crate) fn is_pinned(map: &Labels) -> bool {
    map.get(labels::PINNED).is_some_and(|v| v == labels::PINNED_VALUE)
}

/// What names need a hash reference to be.
#[derive(Debug, Clone)]
struct Need<'a> {
    /// Targets it may have, with the name that wants each.
    targets: Vec<(&'a Image, &'a Descriptor)>,
    pinned: bool,
}

/// What must change so that the invariant holds.
pub(crate) fn changes(records: &[Image], facts: &Facts<'_>) -> Vec<ImageChange> {
    let mut needs: BTreeMap<String, Need<'_>> = BTreeMap::new();
    let mut unknown: BTreeSet<&Digest> = BTreeSet::new();
    let mut kept: BTreeSet<String> = BTreeSet::new();
    let mut changes = Vec::new();
    for name in records.iter().filter(|r| is_name(r)) {
        let reference = name.name.parse::<Reference>().ok().filter(|r| r.to_string() == name.name);
        let digest_name = match &reference {
            Some(Reference::Tag { repository, .. }) => Some(repository.with_digest(&name.target.digest).to_string()),
            _ => None,
        };
        let Some(id) = (facts.image)(&name.target.digest) else {
            unknown.insert(&name.target.digest);
            kept.extend(digest_name);
            continue;
        };
        let pinned = facts.pins.contains(&name.name);
        changes.extend(adopt(name, matches!(reference, Some(Reference::Digest { .. })), pinned));
        for hash in std::iter::once(id.to_string()).chain(digest_name) {
            let need = needs.entry(hash).or_insert(Need { targets: Vec::new(), pinned: false });
            need.targets.push((name, &name.target));
            need.pinned |= pinned || is_pinned(&name.labels);
        }
    }
    let by_name: HashMap<&str, &Image> = records.iter().map(|r| (r.name.as_str(), r)).collect();
    changes.extend(needs.iter().filter_map(|(hash, need)| satisfy(hash, need, by_name.get(hash.as_str()).copied())));
    let is_kept = |r: &Image| {
        let waits = classify(&r.name) == Kind::Id && unknown.contains(&r.target.digest);
        waits
            || is_name(r)
            || is_pushed(&r.labels)
            || is_pinned(&r.labels)
            || (facts.used)(&r.target.digest)
            || needs.contains_key(&r.name)
            || kept.contains(&r.name)
    };
    // What is kept for another reason than a name's need starts a new grace period when that reason goes.
    let spared = |r: &&Image| r.labels.contains_key(labels::STRANDED) && is_kept(r) && !needs.contains_key(&r.name);
    let clear = Labels::from([(labels::STRANDED.to_owned(), String::new())]);
    changes.extend(records.iter().filter(spared).filter_map(|record| relabel(record, clear.clone())));
    let stranded = records.iter().filter(|r| !is_kept(r));
    changes.extend(stranded.filter_map(|record| strand(record, facts)));
    changes
}

/// Marks a name as looked after, perhaps as pinned, and a digest reference as one that was asked for.
fn adopt(name: &Image, by_digest: bool, pinned: bool) -> Option<ImageChange> {
    let mut wanted = record_labels(true, pinned);
    if by_digest && !name.labels.contains_key(labels::CACHED) {
        wanted.insert(labels::REQUESTED.to_owned(), labels::REQUESTED_VALUE.to_owned());
    }
    wanted.retain(|key, value| name.labels.get(key) != Some(value));
    relabel(name, wanted)
}

fn relabel(record: &Image, labels: Labels) -> Option<ImageChange> {
    let (name, target) = (record.name.clone(), record.target.clone());
    (!labels.is_empty()).then_some(ImageChange::Upsert { name, target, labels })
}

/// Makes a hash reference be as its names need it.
fn satisfy(hash: &str, need: &Need<'_>, existing: Option<&Image>) -> Option<ImageChange> {
    let mut labels = record_labels(true, need.pinned);
    let latest =
        need.targets.iter().max_by_key(|(name, _)| (name.updated_at, &name.name)).map(|(_, target)| *target)?;
    let Some(existing) = existing else {
        return Some(ImageChange::Upsert { name: hash.to_owned(), target: latest.clone(), labels });
    };
    labels.retain(|key, value| existing.labels.get(key) != Some(value));
    if existing.labels.contains_key(labels::STRANDED) {
        labels.insert(labels::STRANDED.to_owned(), String::new());
    }
    let fits = need.targets.iter().any(|(_, target)| target.digest == existing.target.digest);
    if !fits {
        return Some(ImageChange::Upsert { name: hash.to_owned(), target: latest.clone(), labels });
    }
    relabel(existing, labels)
}

/// What becomes of a hash reference that no name needs.
fn strand(record: &Image, facts: &Facts<'_>) -> Option<ImageChange> {
    let mut labels = Labels::new();
    if !is_managed(&record.labels) {
        let own = (facts.image)(&record.target.digest).is_some_and(|id| id.to_string() == record.name);
        if !own {
            // A foreign platform's, or not an image: somebody else's business.
            return None;
        }
        labels = record_labels(true, false);
    }
    let delete = || Some(ImageChange::Delete { name: record.name.clone() });
    let since = record.labels.get(labels::STRANDED).and_then(|text| text.parse::<Timestamp>().ok());
    match since {
        Some(since) if facts.now.as_second() - since.as_second() >= facts.grace_seconds => delete(),
        _ if (facts.deleted)(&record.target.digest) => delete(),
        Some(_) => relabel(record, labels),
        None => {
            labels.insert(labels::STRANDED.to_owned(), facts.now.to_string());
            relabel(record, labels)
        }
    }
}

impl Images {
    /// Brings the hash references of a namespace in order; does nothing where the namespace is not CRI-managed.
    /// Idempotent: a second pass changes nothing.
    pub async fn reconcile(&self, namespace: &str) -> Result<Reconciled> {
        if !self.settings().is_cri(namespace) {
            return Ok(Reconciled::default());
        }
        let scope = Scope::new(namespace, RECONCILER);
        within(info_span!("reconcile", namespace, error = Empty), self.pass(&scope, None)).await
    }

    /// The same after one record was created, changed or deleted: what has to do with `name`.
    pub async fn reconcile_image(&self, namespace: &str, name: &str) -> Result<Reconciled> {
        if !self.settings().is_cri(namespace) {
            return Ok(Reconciled::default());
        }
        let (owned, last) = (namespace.to_owned(), name.to_owned());
        let changes = self.blocking(move |store| Ok(store.history(&owned, Some(&last), 1)?)).await?;
        let span = info_span!("reconcile", namespace, image = name, error = Empty);
        within(span, self.reconcile_near(namespace, Near::new(&changes).and(name))).await
    }

    /// The same after these changes of records, all that there were to them: what has to do with any of them.
    pub async fn reconcile_changes(&self, namespace: &str, changes: &[HistoryEntry]) -> Result<Reconciled> {
        if changes.is_empty() || !self.settings().is_cri(namespace) {
            return Ok(Reconciled::default());
        }
        let span = info_span!("reconcile", namespace, changes = changes.len(), error = Empty);
        within(span, self.reconcile_near(namespace, Near::new(changes))).await
    }

    /// The same after a command took these records away, which pointed there.
    pub(crate) async fn reconcile_removed(
        &self,
        namespace: &str,
        names: BTreeSet<String>,
        targets: BTreeSet<Digest>,
    ) -> Result<Reconciled> {
        if !self.settings().is_cri(namespace) {
            return Ok(Reconciled::default());
        }
        let span = info_span!("reconcile", namespace, changes = names.len(), error = Empty);
        within(span, self.reconcile_near(namespace, Near { names, targets })).await
    }

    pub(crate) async fn wanted_changes(&self, namespace: &str, catalog: &Catalog) -> Result<Vec<ImageChange>> {
        let platform = self.platform();
        let image = |target: &Digest| catalog.complete_image(target, platform);
        let pins = self.settings().pins();
        let users = self.users(namespace).await?;
        let used = |target: &Digest| !users.of(catalog, target).is_empty();
        let asked: Mutex<BTreeSet<Digest>> = Mutex::default();
        let ask = |target: &Digest| {
            asked.lock().unwrap_or_else(PoisonError::into_inner).insert(target.clone());
            false
        };
        let mut facts = Facts {
            image: &image,
            deleted: &ask,
            used: &used,
            pins: &pins,
            now: Timestamp::now(),
            grace_seconds: self.settings().grace_seconds,
        };
        let first = changes(&catalog.records, &facts);
        if !first.iter().any(marks_stranded) {
            return Ok(first);
        }
        let asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
        let ends = self.last_ends(namespace, asked).await?;
        let deleted = |target: &Digest| ends.get(target) == Some(&HistoryAction::Delete);
        facts.deleted = &deleted;
        Ok(changes(&catalog.records, &facts))
    }

    /// How the last name of each of these targets ended, of those that the history remembers. It is read back to the last
    /// of them and no further.
    async fn last_ends(&self, namespace: &str, mut wanted: BTreeSet<Digest>) -> Result<HashMap<Digest, HistoryAction>> {
        let namespace = namespace.to_owned();
        self.blocking(move |store| {
            let mut ends = HashMap::new();
            store.visit_history(&namespace, None, HISTORY, |entry| {
                if let Some(old) = entry.old.filter(|old| entry.new.as_ref() != Some(old))
                    && !classify(&entry.name).is_hash_reference()
                    && wanted.remove(&old)
                {
                    ends.insert(old, entry.action);
                }
                if wanted.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            Ok(ends)
        })
        .await
    }

    /// Writes those changes that still hold; says whether all did.
    async fn carry_out(
        &self,
        scope: &Scope,
        catalog: Catalog,
        changes: Vec<ImageChange>,
        done: &mut Reconciled,
    ) -> Result<bool> {
        let existing: BTreeSet<String> = catalog.records.iter().map(|r| r.name.clone()).collect();
        let (scope, platform, decided) = (scope.clone(), self.settings().platform.clone(), changes.clone());
        let left = self
            .blocking(move |store| {
                let known: BTreeSet<&Digest> = catalog.records.iter().map(|r| &r.target.digest).collect();
                let of = |catalog: &Catalog, target: &Digest| {
                    (catalog.complete_image(target, &platform), catalog.has_unread(target))
                };
                // Writers wait meanwhile, and a target is asked for by every change: once is enough.
                let learnt: RefCell<HashMap<Digest, (Option<ImageId>, bool)>> = RefCell::default();
                let learn = |target: &Digest| {
                    let answer = || match known.contains(target) {
                        true => of(&catalog, target),
                        // What cannot be read may be anything.
                        false => Catalog::of_target(store, &scope, target).map_or((None, true), |own| of(&own, target)),
                    };
                    learnt.borrow_mut().entry(target.clone()).or_insert_with(answer).clone()
                };
                let (image, unread) = (|target: &Digest| learn(target).0, |target: &Digest| learn(target).1);
                let since = Since { records: &catalog.records, image: &image, unread: &unread };
                // Of containers the history says nothing. What cannot be read may be used.
                let users: OnceCell<Option<Users>> = OnceCell::new();
                let used = |target: &Digest| {
                    let users = users.get_or_init(|| Users::read(store, &scope.namespace).ok());
                    users.as_ref().is_none_or(|users| !users.of(&catalog, target).is_empty())
                };
                let outdated = |change: &ImageChange, entries: &[HistoryEntry]| {
                    let needed = || strands(change) && since.target(change).is_none_or(used);
                    entries.iter().any(|entry| since.outdates(change, entry)) || needed()
                };
                Ok(store.write_images_decided_at(&scope, catalog.seen, decided, outdated)?)
            })
            .await?;
        for change in changes.iter().filter(|change| !left.contains(change)) {
            let name = change.name().to_owned();
            match change {
                ImageChange::Delete { .. } => done.removed.push(name),
                ImageChange::Upsert { .. } if existing.contains(&name) => done.updated.push(name),
                ImageChange::Upsert { .. } => done.created.push(name),
            }
        }
        Ok(left.is_empty())
    }
}

/// Whether it is by all records of the namespace that a change was decided, or must be.
fn strands(change: &ImageChange) -> bool {
    matches!(change, ImageChange::Delete { .. }) || marks_stranded(change)
}

fn marks_stranded(change: &ImageChange) -> bool {
    match change {
        ImageChange::Upsert { labels, .. } => labels.get(labels::STRANDED).is_some_and(|v| !v.is_empty()),
        ImageChange::Delete { .. } => false,
    }
}

/// What is known when changes are written that were decided on these records.
struct Since<'a> {
    records: &'a [Image],
    /// The image ID of a target for the host, if that image is complete.
    image: &'a dyn Fn(&Digest) -> Option<ImageId>,
    /// Whether a target has documents that nobody has read yet: it may be one of any image.
    unread: &'a dyn Fn(&Digest) -> bool,
}

impl Since<'_> {
    /// What the changed record is to point at, or pointed at.
    fn target<'c>(&'c self, change: &'c ImageChange) -> Option<&'c Digest> {
        match change {
            ImageChange::Upsert { target, .. } => Some(&target.digest),
            ImageChange::Delete { name } => self.records.iter().find(|r| r.name == *name).map(|r| &r.target.digest),
        }
    }

    /// Whether what happened since may make a change wrong: it happened to the same record, or to one of the same image.
    fn outdates(&self, change: &ImageChange, since: &HistoryEntry) -> bool {
        if since.name == change.name() {
            return true;
        }
        let Some(target) = self.target(change) else { return true };
        let id = (self.image)(target);
        let concerns = |digest: &Digest| digest == target || (id.is_some() && (self.image)(digest) == id);
        let may_need = |digest: &Digest| concerns(digest) || (strands(change) && (self.unread)(digest));
        since.old.as_ref().is_some_and(concerns) || since.new.as_ref().is_some_and(may_need)
    }
}

impl Settings {
    /// A number that is another one if these settings, or another version of Orlop, may want other hash references of the
    /// same records.
    pub fn reconciler_rules(&self) -> i64 {
        let sorted = |mut list: Vec<String>| {
            list.sort_unstable();
            list
        };
        let (namespaces, pins) = (sorted(self.cri_namespaces.clone()), sorted(self.pins()));
        let said =
            format!("{} {} {} {namespaces:?} {pins:?}", env!("CARGO_PKG_VERSION"), self.platform, self.grace_seconds);
        let hash = Digest::of(said.as_bytes()).to_bytes();
        hash.iter().take(8).fold(0, |number, byte| number << 8 | i64::from(*byte))
    }
}

#[cfg(test)]
mod tests;
