//! Which images a policy takes: a selection, of which the same plan is made as of names that somebody typed.
//!
//! # Invariants
//! - An image goes whole, with all its names in the namespace, or not at all.
//! - Never taken is what is pinned, what a container uses, what a lease or a snapshot that a label keeps stands on; without
//!   [`last_copies`](Policy::last_copies) also nothing that no registry is known to have.
//! - Each further condition can only spare more: conditions are joined by *and*.
//! - With a number of bytes to free the selection stops with the image that reaches it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use orlop_oci::Kind;

use super::plan::repository;
use super::{ImageNames, Kept, Labels, Model, NamespaceId, Node, NodeId, NodeKind, Pattern, Root, SnapshotKind};

/// A label of a snapshot that begins so says when it was used.
const USED_AT: &str = "containerd.io/gc.cond.value-usedat";

/// What is to go, of images that nobody needs.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The namespace.
    pub namespace: NamespaceId,
    /// Only what was not used for so long.
    pub unused_since: Option<SignedDuration>,
    /// Not the newest names of each repository.
    pub keep_last: Option<usize>,
    /// Only images all of whose names are of a repository that fits one of these; none: any.
    pub repositories: Vec<Pattern>,
    /// Only images that fulfil all of these.
    pub labels: Vec<LabelRule>,
    /// Only images without a tag.
    pub untagged: bool,
    /// Also what no registry is known to have.
    pub last_copies: bool,
    /// Bytes that are to be given back: no more images than that takes.
    pub free: Option<u64>,
    /// The size of the file system's blocks, in which blobs are counted.
    pub block: u64,
}

/// A condition on the labels of an image and its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRule {
    /// The key.
    pub key: String,
    /// The value; any if there is none.
    pub value: Option<String>,
    /// Whether there must be such a label, or must not be.
    pub wanted: bool,
}

/// What a policy takes and leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// What goes, least recently used first.
    pub chosen: Vec<Chosen>,
    /// What stays, by name.
    pub kept: Vec<Spared>,
}

/// An image that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The image.
    pub image: ImageNames,
    /// When it was last used, as far as anything tells.
    pub last_use: Option<Use>,
    /// Bytes that go with it when those before it have gone.
    pub frees: u64,
}

/// An image that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spared {
    /// The image.
    pub image: ImageNames,
    /// Why.
    pub why: Spare,
}

/// A use of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// When.
    pub at: Timestamp,
    /// What tells so.
    pub sign: Sign,
}

/// What tells of a use. Only [`Sign::Label`] says it; the others conclude it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// A record of the image was written.
    Record,
    /// The image was unpacked.
    Snapshot,
    /// A snapshot's label says when it was used.
    Label,
}

/// Why an image stays.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spare {
    /// One of its names is of a repository that was not asked for.
    OtherRepository(NodeId),
    /// A name of it is of no repository, and repositories decide.
    NoRepository,
    /// The condition on labels at this position is not fulfilled.
    Label(usize),
    /// Labels decide, and those of one of its configs are not known.
    LabelsUnknown,
    /// It has a tag.
    Tagged(NodeId),
    /// These containers use it.
    InUse(Vec<NodeId>),
    /// This record is pinned.
    Pinned(NodeId),
    /// This lease holds it, or something that stands on it; or this snapshot, whose own label keeps it, stands on it.
    Held(NodeId),
    /// It was used lately.
    Recent(Use),
    /// Nothing tells when it was used.
    UseUnknown,
    /// This name is among the newest of its repository.
    AmongLast(NodeId),
    /// No registry is known to have this target of it.
    LastCopy(NodeId),
    /// What was chosen before it is enough.
    Enough,
    /// Others that stay keep all that it has, so it helps nothing.
    FreesNothing,
}

/// What is asked of every image.
struct Judge<'m> {
    model: &'m Model,
    policy: &'m Policy,
    labels: &'m BTreeMap<NodeId, Labels>,
    users: BTreeMap<NodeId, Vec<NodeId>>,
    leases: Vec<NodeId>,
    leased: Kept,
    /// By topmost snapshot of an image: who holds a snapshot that stands on it.
    stood_on: BTreeMap<NodeId, NodeId>,
    newest: BTreeSet<NodeId>,
}

impl Model {
    /// What a policy takes, and what it leaves and why. `labels` are those of images, by their configs, where the policy asks
    /// for any; of a config that is not among them they are unknown.
    pub fn selection(&self, policy: &Policy, labels: &BTreeMap<NodeId, Labels>) -> Selection {
        let images = self.whole_images(policy.namespace);
        let judge = Judge::new(self, policy, labels, &images);
        let mut selection = Selection::default();
        for image in images {
            match judge.spares(&image) {
                Some(why) => selection.kept.push(Spared { image, why }),
                None => {
                    let last_use = self.last_use(&image.records);
                    selection.chosen.push(Chosen { image, last_use, frees: 0 });
                }
            }
        }
        // Of what nothing is known is taken last.
        selection.chosen.sort_by_key(|chosen| chosen.last_use.map_or(Timestamp::MAX, |last| last.at));
        self.weigh_in_turn(policy, &mut selection);
        selection
    }

    /// Computes what each gives back in its turn, and leaves out what a number of bytes does not need.
    fn weigh_in_turn(&self, policy: &Policy, selection: &mut Selection) {
        let groups: Vec<Vec<NodeId>> = selection.chosen.iter().map(|chosen| chosen.image.records.clone()).collect();
        let gains = self.gains(&groups, policy.block);
        for (chosen, bytes) in selection.chosen.iter_mut().zip(&gains.bytes) {
            chosen.frees = *bytes;
        }
        let Some(wanted) = policy.free else { return };
        let mut freed: u64 = 0;
        let is_short = |bytes: &&u64| {
            let short = freed < wanted;
            freed = freed.saturating_add(**bytes);
            short
        };
        let needed = gains.bytes.iter().take_while(is_short).count();
        for (at, chosen) in std::mem::take(&mut selection.chosen).into_iter().enumerate() {
            let why = match at {
                at if at >= needed => Spare::Enough,
                _ if !self.takes_part(&chosen.image.records, &gains, needed) => Spare::FreesNothing,
                _ => {
                    selection.chosen.push(chosen);
                    continue;
                }
            };
            selection.kept.push(Spared { image: chosen.image, why });
        }
    }

    /// Images of a namespace; records with the same target are always of one.
    fn whole_images(&self, namespace: NamespaceId) -> Vec<ImageNames> {
        let mut by_target: HashMap<Option<NodeId>, usize> = HashMap::new();
        let mut whole: Vec<Option<ImageNames>> = Vec::new();
        for mut image in self.images().into_iter().filter(|image| image.namespace == namespace) {
            let targets: BTreeSet<Option<NodeId>> = image.records.iter().map(|record| self.target(*record)).collect();
            let same: BTreeSet<usize> = targets.iter().filter_map(|target| by_target.get(target).copied()).collect();
            let at = same.first().copied().unwrap_or(whole.len());
            for other in same.into_iter().rev().filter_map(|at| whole[at].take()) {
                image.image_id = other.image_id.or(image.image_id);
                image.records = [other.records, image.records].concat();
            }
            by_target.extend(image.records.iter().map(|record| (self.target(*record), at)));
            if at == whole.len() { whole.push(Some(image)) } else { whole[at] = Some(image) }
        }
        whole.into_iter().flatten().collect()
    }

    /// When an image was last used, as far as its records and snapshots tell.
    pub fn last_use(&self, records: &[NodeId]) -> Option<Use> {
        let written = records.iter().filter_map(|record| match self.node(*record) {
            Node::Record(row) => row.created.max(row.updated).map(|at| Use { at, sign: Sign::Record }),
            _ => None,
        });
        let snapshots: BTreeSet<NodeId> = self
            .configs(records)
            .into_iter()
            .flat_map(|config| self.references(config))
            .map(|edge| edge.node)
            .filter(|node| self.kind(*node) == NodeKind::Snapshot)
            .collect();
        written.chain(snapshots.into_iter().flat_map(|snapshot| self.uses_of(snapshot))).max()
    }

    fn uses_of(&self, snapshot: NodeId) -> impl Iterator<Item = Use> + '_ {
        let made = match self.node(snapshot) {
            Node::Snapshot(row) => row.created.max(row.updated),
            _ => None,
        };
        let said = self.labels(snapshot).starting(USED_AT).filter_map(|(_, value)| value.parse().ok());
        let made = made.map(|at| Use { at, sign: Sign::Snapshot });
        made.into_iter().chain(said.map(|at| Use { at, sign: Sign::Label }))
    }

    /// The configs of an image, of all platforms that are here.
    pub fn configs(&self, records: &[NodeId]) -> Vec<NodeId> {
        let targets: BTreeSet<NodeId> = records.iter().filter_map(|record| self.target(*record)).collect();
        let manifests = targets.into_iter().flat_map(|target| {
            let listed = self.manifests(target);
            if listed.is_empty() { vec![target] } else { listed }
        });
        let configs: BTreeSet<NodeId> = manifests.filter_map(|manifest| self.config(manifest)).collect();
        configs.into_iter().filter(|config| self.kind(*config) == NodeKind::Blob).collect()
    }

    /// The records among the newest names of their repositories; what has no time is taken to be new, and counts for none.
    fn newest_names(&self, images: &[ImageNames], last: usize) -> BTreeSet<NodeId> {
        let mut newest = BTreeSet::new();
        let mut repositories: BTreeMap<String, Vec<(Timestamp, &str, NodeId)>> = BTreeMap::new();
        for record in images.iter().flat_map(|image| &image.records).copied().filter(|r| self.is_name(*r)) {
            let Node::Record(row) = self.node(record) else { continue };
            let Some(repository) = repository(&row.name) else { continue };
            match row.updated.max(row.created) {
                Some(at) => repositories.entry(repository.to_string()).or_default().push((at, &row.name, record)),
                None => drop(newest.insert(record)),
            }
        }
        for mut names in repositories.into_values() {
            names.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| natural(b.1).cmp(&natural(a.1))));
            newest.extend(names.into_iter().take(last).map(|(.., record)| record));
        }
        newest
    }
}

impl<'m> Judge<'m> {
    fn new(model: &'m Model, policy: &'m Policy, labels: &'m BTreeMap<NodeId, Labels>, images: &[ImageNames]) -> Self {
        let leases: Vec<NodeId> = model.nodes(NodeKind::Lease).filter(|lease| model.root(*lease).is_some()).collect();
        let leased = model.reached(&leases);
        let newest = policy.keep_last.map(|last| model.newest_names(images, last)).unwrap_or_default();
        let (users, stood_on) = (model.all_users(), stood_on(model, &leases));
        Self { model, policy, labels, users, leases, leased, stood_on, newest }
    }

    /// Why an image stays, if it does: first what was not asked for, then what is not to be touched, then what is too new.
    fn spares(&self, image: &ImageNames) -> Option<Spare> {
        let records = &image.records;
        self.not_asked(records).or_else(|| self.needed(records)).or_else(|| self.too_new(records)).or_else(|| {
            let lost = (!self.policy.last_copies).then(|| self.model.without_source(records)).flatten();
            lost.map(Spare::LastCopy)
        })
    }

    fn not_asked(&self, records: &[NodeId]) -> Option<Spare> {
        let Policy { repositories, labels, untagged, keep_last, .. } = self.policy;
        let names: Vec<NodeId> = records.iter().copied().filter(|record| self.model.is_name(*record)).collect();
        let of = |name: NodeId| match self.model.node(name) {
            Node::Record(row) => repository(&row.name),
            _ => None,
        };
        let by_repository = !repositories.is_empty() || keep_last.is_some();
        if by_repository && (names.is_empty() || names.iter().any(|name| of(*name).is_none())) {
            return Some(Spare::NoRepository);
        }
        let fits = |name: &NodeId| of(*name).is_some_and(|name| repositories.iter().any(|p| p.matches(&name)));
        if let Some(other) = names.iter().find(|name| !repositories.is_empty() && !fits(name)) {
            return Some(Spare::OtherRepository(*other));
        }
        for (at, rule) in labels.iter().enumerate() {
            match self.has(records, rule) {
                Some(has) if has == rule.wanted => {}
                Some(_) => return Some(Spare::Label(at)),
                None => return Some(Spare::LabelsUnknown),
            }
        }
        let is_tag = |record: &&NodeId| matches!(self.model.record_kind(**record), Kind::Tag | Kind::Other);
        names.iter().find(is_tag).filter(|_| *untagged).map(|name| Spare::Tagged(*name))
    }

    /// Whether one of an image's records, or one of its configs, has a label; none if that is unknown.
    fn has(&self, records: &[NodeId], rule: &LabelRule) -> Option<bool> {
        let fits = |labels: &Labels| {
            labels.get(&rule.key).is_some_and(|value| rule.value.as_deref().is_none_or(|wanted| wanted == value))
        };
        if records.iter().any(|record| fits(self.model.labels(*record))) {
            return Some(true);
        }
        let configs = self.model.configs(records);
        let known: Vec<&Labels> = configs.iter().filter_map(|config| self.labels.get(config)).collect();
        if known.iter().any(|labels| fits(labels)) {
            return Some(true);
        }
        (!configs.is_empty() && known.len() == configs.len()).then_some(false)
    }

    fn needed(&self, records: &[NodeId]) -> Option<Spare> {
        let mut users: Vec<NodeId> =
            records.iter().filter_map(|record| self.users.get(record)).flatten().copied().collect();
        if !users.is_empty() {
            users.sort_unstable();
            users.dedup();
            return Some(Spare::InUse(users));
        }
        if let Some(pinned) = records.iter().find(|record| self.model.is_pinned(**record)) {
            return Some(Spare::Pinned(*pinned));
        }
        self.holder(records).map(Spare::Held)
    }

    /// What holds an image although no container is there: somebody is at work on it, or keeps a file system that stands on it.
    fn holder(&self, records: &[NodeId]) -> Option<NodeId> {
        let target = records.iter().filter_map(|record| self.model.target(*record)).find(|t| self.leased.contains(*t));
        if let Some(held) = target {
            let holds = |lease: &NodeId| self.model.reached(&[*lease]).contains(held);
            return self.leases.iter().copied().find(holds);
        }
        let configs = self.model.configs(records);
        let tops = configs.iter().flat_map(|config| self.model.references(*config)).map(|edge| edge.node);
        tops.filter_map(|top| self.stood_on.get(&top).copied()).next()
    }

    fn too_new(&self, records: &[NodeId]) -> Option<Spare> {
        if let Some(since) = self.policy.unused_since {
            let Some(last) = self.model.last_use(records) else { return Some(Spare::UseUnknown) };
            if self.model.inventory().taken.duration_since(last.at) < since {
                return Some(Spare::Recent(last));
            }
        }
        records.iter().find(|record| self.newest.contains(record)).map(|name| Spare::AmongLast(*name))
    }
}

/// The topmost snapshots of images on which file systems stand that a lease lists, or that a label of their own keeps. Docker
/// keeps those of containers that do not run by a lease each; the containers themselves only Docker knows. Committed ones are
/// no use of an image: build caches list those of images that they began with.
fn stood_on(model: &Model, leases: &[NodeId]) -> BTreeMap<NodeId, NodeId> {
    let listed = leases.iter().flat_map(|lease| model.references(*lease).map(|edge| (edge.node, *lease)));
    let labelled = model.roots().iter().filter(|(_, root)| *root == Root::Label).map(|(node, _)| (*node, *node));
    let is_file_system = |node: NodeId| match model.node(node) {
        Node::Snapshot(row) => row.kind != SnapshotKind::Committed,
        _ => false,
    };
    let snapshots = listed.chain(labelled).filter(|(node, _)| is_file_system(*node));
    snapshots.filter_map(|(snapshot, holder)| Some((model.image_top(snapshot)?, holder))).collect()
}

/// A text in pieces that compare as people count: `v1.9` is less than `v1.10`.
fn natural(text: &str) -> Vec<(bool, u64, &str)> {
    let is_digit = |c: char| c.is_ascii_digit();
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_digit(c) != is_digit(first)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        pieces.push((is_digit(first), piece.parse().unwrap_or(u64::MAX), piece));
        rest = after;
    }
    pieces
}
