//! What is wrong in a store, as far as its lists and labels tell: one function a class, each with what causes it and why it
//! may, or may not, be mended without somebody having asked.
//!
//! # What cannot be told apart
//! - An image that was pulled by digest and one that lost its name both have hash references alone. Only a container says
//!   that it is used.
//! - A lease without an end may be one that a client forgot, or one that a client still wants.
//! - A label `containerd.io/gc.root` may have been set for a minute or for good.
//!
//! So none of these is [safe](Class::is_safe) to mend, however large it is.
//!
//! # Invariants
//! - What is safe to mend removes nothing that a record, a container, a lease or a label keeps, but writes that have
//!   stood still for a day.
//! - What is being pulled while the store is read may look like garbage: whoever acts on that looks twice.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use orlop_oci::{ImageId, Kind, Reference};

use super::{CACHED, Kept, MANAGED, Model, NamespaceId, Node, NodeId, NodeKind, PINNED, PUSHED, Root, Weight, Why};

/// How long a lease without an end, or a write that stands still, is taken to be somebody's work: containerd gives its own
/// leases and writes this long.
const WORK: SignedDuration = SignedDuration::from_hours(24);

/// How old garbage is before it is worth a word: what was imported or removed just now waits for its collection.
const SETTLED: SignedDuration = SignedDuration::from_hours(1);

/// Namespaces whose owners keep what they have by leases without an end, on purpose: Docker and BuildKit.
const LEASING: [&str; 2] = ["moby", "buildkit"];

/// containerd's own snapshotters. Others may start containers from layers that are fetched when they are read.
const EAGER: [&str; 8] = ["overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs", "windows"];

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Class {
    /// An image without a name, held by hash references that no container uses.
    Stranded,
    /// A tag without the hash reference `NAME@DIGEST` beside it.
    MissingDigest,
    /// An image without the record of its ID.
    MissingId,
    /// A record that CRI should have taken in and has not.
    Unmanaged,
    /// An image of which a part is not here.
    Partial,
    /// An index without an image for this platform, or no image at all, which CRI tries to take in for ever.
    ForeignPlatform,
    /// A lease without an end, made long ago.
    Lease,
    /// A write that has stood still for long.
    Ingest,
    /// A snapshot that nothing but its own label keeps.
    OrphanSnapshot,
    /// A blob that nothing but its own label keeps.
    OrphanBlob,
    /// What nothing keeps and no collection has taken yet.
    Garbage,
    /// A blob whose bytes are not those of its digest.
    Damaged,
    /// A file of a snapshot that is empty where its layer has content.
    ZeroLength,
}

impl Class {
    /// All classes, in the order in which they are told.
    pub const ALL: [Self; 13] = [
        Self::Stranded,
        Self::MissingDigest,
        Self::MissingId,
        Self::Unmanaged,
        Self::Partial,
        Self::ForeignPlatform,
        Self::Lease,
        Self::Ingest,
        Self::OrphanSnapshot,
        Self::OrphanBlob,
        Self::Garbage,
        Self::Damaged,
        Self::ZeroLength,
    ];

    /// The word for it in JSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stranded => "stranded",
            Self::MissingDigest => "missing-digest",
            Self::MissingId => "missing-id",
            Self::Unmanaged => "unmanaged",
            Self::Partial => "partial",
            Self::ForeignPlatform => "foreign-platform",
            Self::Lease => "lease",
            Self::Ingest => "ingest",
            Self::OrphanSnapshot => "orphan-snapshot",
            Self::OrphanBlob => "orphan-blob",
            Self::Garbage => "garbage",
            Self::Damaged => "damaged",
            Self::ZeroLength => "zero-length",
        }
    }

    /// Whether mending it can lose nothing that somebody may want.
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::MissingDigest | Self::MissingId | Self::Ingest | Self::Garbage)
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub class: Class,
    /// What it is about.
    pub subject: NodeId,
    /// Everything concerned: of a stranded image its records, of one in part what is not here, of an orphan all that lies
    /// on it.
    pub things: Vec<NodeId>,
    /// What the store gives back if it is mended.
    pub frees: Weight,
    /// What mends it.
    pub mend: Mend,
}

/// What mends something.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mend {
    /// These go, one after the other, and then what only they kept.
    Remove(Vec<NodeId>),
    /// A record of this name is written, pointing where another points.
    Write {
        /// The new name.
        name: String,
        /// The record beside it.
        like: NodeId,
    },
    /// CRI labels the record when it changes; or somebody does in its place.
    Label,
    /// The store's own collection takes it.
    Collect,
    /// What is not here has to be fetched again.
    Fetch,
}

/// What findings need to know and labels do not tell.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The namespace that containerd's CRI plugin looks after; none if none runs.
    pub managed: Option<String>,
    /// Records of it that CRI cannot take in: an index without an image for this platform, or no image.
    pub foreign: BTreeSet<NodeId>,
    /// By index: the manifest that this platform uses, whether it is here or not. Of an index that is not in it, nothing is
    /// said about its parts.
    pub hosts: BTreeMap<NodeId, NodeId>,
}

impl Model {
    /// Everything that is wrong as far as lists, labels and the given facts tell, by class.
    pub fn findings(&self, facts: &Facts) -> Vec<Finding> {
        let managed = facts.managed.as_deref().and_then(|name| self.namespace_id(name));
        let live = self.live();
        let mut findings = Vec::new();
        if let Some(namespace) = managed {
            self.stranded(namespace, &mut findings);
            self.missing_digests(namespace, facts, &mut findings);
            self.missing_ids(namespace, facts, &mut findings);
            self.unmanaged(namespace, facts, &mut findings);
            self.foreign(facts, &mut findings);
        }
        self.partial(facts, &mut findings);
        self.leaked_leases(&mut findings);
        self.old_ingests(&mut findings);
        self.orphans(&live, &mut findings);
        self.uncollected(&mut findings);
        findings.sort_by_key(|finding| (finding.class, finding.subject));
        findings
    }

    fn namespace_id(&self, name: &str) -> Option<NamespaceId> {
        let at = self.inventory().namespaces.iter().position(|n| *n.name == *name)?;
        NamespaceId::try_from(at).ok()
    }

    /// What is kept by other reasons than a label of its own or a lease that somebody forgot.
    fn live(&self) -> Kept {
        let counts = |(node, root): &(NodeId, Root)| *root != Root::Label && !self.is_leaked(*node);
        let roots: Vec<NodeId> = self.roots().iter().filter(|r| counts(r)).map(|(node, _)| *node).collect();
        self.reached(&roots)
    }

    /// Images that only hash references name and no container uses. The last name was removed (`ctr images rm`, which leaves
    /// the hash references), or the tag was moved by a later pull. Not safe: an image that a pod pulled by digest and that
    /// has not started yet, or will again, looks the same. Pinned images, what a lease holds and what was pushed to the store's own
    /// registry are left out: somebody wants these. So is what a mirror has, which removes it by itself.
    fn stranded(&self, namespace: NamespaceId, findings: &mut Vec<Finding>) {
        let leases: Vec<NodeId> = self.nodes(NodeKind::Lease).filter(|lease| self.root(*lease).is_some()).collect();
        let leased = self.reached(&leases);
        let users = self.all_users();
        for image in self.images().into_iter().filter(|image| image.namespace == namespace) {
            let records = image.records;
            let wanted = records.iter().any(|record| {
                !self.record_kind(*record).is_hash_reference()
                    || self.labels(*record).get(PINNED).is_some()
                    || self.labels(*record).get(PUSHED).is_some()
                    || self.labels(*record).get(CACHED).is_some()
                    || self.target(*record).is_some_and(|target| leased.contains(target))
            });
            if wanted || records.iter().any(|record| users.contains_key(record)) {
                continue;
            }
            let subject = records.iter().copied().find(|r| self.record_kind(*r) == Kind::Id).unwrap_or(records[0]);
            let frees = self.cost(&records).alone;
            let mend = Mend::Remove(records.clone());
            findings.push(Finding { class: Class::Stranded, subject, things: records, frees, mend });
        }
    }

    /// Tags without `NAME@DIGEST`: imported or tagged with `ctr`, or the record was deleted. A pod that asks for the image by
    /// digest is told that it is not there. Safe: a name more costs nothing, and takes nothing from anybody.
    fn missing_digests(&self, namespace: NamespaceId, facts: &Facts, findings: &mut Vec<Finding>) {
        let mut written = BTreeSet::new();
        for record in self.here(namespace, facts) {
            let Node::Record(row) = self.node(record) else { continue };
            if self.record_kind(record) != Kind::Tag {
                continue;
            }
            let Some(repository) = row.name.parse::<Reference>().ok().and_then(|r| r.repository().cloned()) else {
                continue;
            };
            let name = repository.with_digest(&row.target).to_string();
            if self.record(namespace, &name).is_none() && written.insert(name.clone()) {
                findings.push(self.write(Class::MissingDigest, record, name));
            }
        }
    }

    /// Images with names and without the record of their ID: it was deleted, or CRI could not read the image. Safe: as a
    /// missing digest.
    fn missing_ids(&self, namespace: NamespaceId, facts: &Facts, findings: &mut Vec<Finding>) {
        let mut written = BTreeSet::new();
        for record in self.here(namespace, facts) {
            if self.record_kind(record) == Kind::Id {
                continue;
            }
            let Some(id) = self.id_here(record, facts) else { continue };
            let name = id.to_string();
            if self.record(namespace, &name).is_none() && written.insert(name.clone()) {
                findings.push(self.write(Class::MissingId, record, name));
            }
        }
    }

    fn write(&self, class: Class, like: NodeId, name: String) -> Finding {
        let mend = Mend::Write { name, like };
        Finding { class, subject: like, things: vec![like], frees: Weight::default(), mend }
    }

    /// Records without CRI's label: CRI could not read their image when it saw them, as when it started and a blob was not there,
    /// and wrote no hash references; of a blob that comes later it hears nothing. Not mended here: CRI does it when the record
    /// changes.
    fn unmanaged(&self, namespace: NamespaceId, facts: &Facts, findings: &mut Vec<Finding>) {
        for subject in self.here(namespace, facts) {
            if self.labels(subject).get(MANAGED).is_none() {
                let (things, frees) = (vec![subject], Weight::default());
                findings.push(Finding { class: Class::Unmanaged, subject, things, frees, mend: Mend::Label });
            }
        }
    }

    /// Records that CRI cannot take in: made by `ctr images pull --platform` or an import for another platform, or an
    /// artifact. It tries again for ever, and says so in its log. Not safe: somebody has put it here.
    fn foreign(&self, facts: &Facts, findings: &mut Vec<Finding>) {
        let mut by_target: BTreeMap<Option<NodeId>, Vec<NodeId>> = BTreeMap::new();
        for record in facts.foreign.iter().copied() {
            by_target.entry(self.target(record)).or_default().push(record);
        }
        for things in by_target.into_values() {
            let name = things.iter().copied().find(|r| !self.record_kind(*r).is_hash_reference());
            let subject = name.unwrap_or(things[0]);
            let frees = self.cost(&things).alone;
            let mend = Mend::Remove(things.clone());
            findings.push(Finding { class: Class::ForeignPlatform, subject, things, frees, mend });
        }
    }

    /// Images of which this platform's manifest, config or a layer is named and not here: a blob was deleted or lost, or a
    /// pull or import broke off. Not mended here: it needs the registry. Layers that a snapshotter fetches as they are read
    /// are no fault.
    fn partial(&self, facts: &Facts, findings: &mut Vec<Finding>) {
        for image in self.images() {
            let mut lacks: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
            // What a mirror has is whatever it was asked for.
            let counts =
                |record: &NodeId| !facts.foreign.contains(record) && self.labels(*record).get(CACHED).is_none();
            for record in image.records.iter().copied().filter(counts) {
                let Some(target) = self.target(record) else { continue };
                let lacking = self.lacking(target, facts);
                if !lacking.is_empty() {
                    lacks.entry(target).or_insert_with(|| BTreeSet::from([record])).extend(lacking);
                }
            }
            for mut things in lacks.into_values() {
                let missing: Vec<NodeId> =
                    things.iter().copied().filter(|n| self.kind(*n) == NodeKind::Missing).collect();
                things.retain(|node| self.kind(*node) == NodeKind::Record);
                let name = image.records.iter().copied().find(|r| !self.record_kind(*r).is_hash_reference());
                let Some(subject) = name.filter(|n| things.contains(n)).or_else(|| things.first().copied()) else {
                    continue;
                };
                let frees = Weight::default();
                let (things, mend) = (missing, Mend::Fetch);
                findings.push(Finding { class: Class::Partial, subject, things, frees, mend });
            }
        }
    }

    /// What a target names for this platform and is not here.
    fn lacking(&self, target: NodeId, facts: &Facts) -> Vec<NodeId> {
        let is_missing = |node: &NodeId| self.kind(*node) == NodeKind::Missing;
        if is_missing(&target) {
            return vec![target];
        }
        let manifest = match facts.hosts.get(&target) {
            Some(manifest) => *manifest,
            None if self.manifests(target).is_empty() => target,
            None => return Vec::new(),
        };
        if is_missing(&manifest) {
            return vec![manifest];
        }
        let config = self.config(manifest);
        let lazy = config.is_some_and(|config| {
            self.references(config).any(|edge| match self.node(edge.node) {
                Node::Snapshot(row) => !EAGER.contains(&&*row.snapshotter),
                _ => false,
            })
        });
        let layers = if lazy { Vec::new() } else { self.layers(manifest) };
        config.into_iter().chain(layers).filter(is_missing).collect()
    }

    /// Leases without an end that are older than a day. A client broke off, or never deletes what it makes. Not safe: nobody
    /// can tell whether that client still wants it. Docker and BuildKit keep what they have by such leases, on purpose.
    fn leaked_leases(&self, findings: &mut Vec<Finding>) {
        for subject in self.nodes(NodeKind::Lease).filter(|lease| self.is_leaked(*lease)) {
            let things = vec![subject];
            let frees = self.cost(&things).alone;
            let mend = Mend::Remove(things.clone());
            findings.push(Finding { class: Class::Lease, subject, things, frees, mend });
        }
    }

    fn is_leaked(&self, node: NodeId) -> bool {
        let Node::Lease(row) = self.node(node) else { return false };
        let namespace = self.namespace(row.namespace);
        let owner = |container: NodeId| match self.node(container) {
            Node::Container(c) => c.namespace == row.namespace && c.id == row.id,
            _ => false,
        };
        super::build::expiry(&row.labels).is_none()
            && self.is_old(row.created)
            && !LEASING.contains(&namespace)
            && !self.nodes(NodeKind::Container).any(owner)
    }

    /// Whether a moment is so long ago that nobody is at work any more.
    fn is_old(&self, moment: Option<Timestamp>) -> bool {
        self.is_older(moment, WORK)
    }

    /// Whether a moment is longer ago than this; of an unknown one that is not said.
    fn is_older(&self, moment: Option<Timestamp>, than: SignedDuration) -> bool {
        moment.is_some_and(|at| self.inventory().taken.duration_since(at) > than)
    }

    /// Writes that have got no byte for a day: a download broke off. Safe: whoever wants it still begins it anew.
    fn old_ingests(&self, findings: &mut Vec<Finding>) {
        for subject in self.nodes(NodeKind::Ingest) {
            let Node::Ingest(row) = self.node(subject) else { continue };
            if !self.is_old(row.started) || !self.is_old(row.updated.or(row.started)) {
                continue;
            }
            let things = vec![subject];
            let frees = self.weigh(things.iter().copied());
            let mend = Mend::Remove(things.clone());
            findings.push(Finding { class: Class::Ingest, subject, things, frees, mend });
        }
    }

    /// Snapshots and blobs that only their own label `containerd.io/gc.root` keeps: made by hand (`ctr snapshots prepare`
    /// sets it) and forgotten. Not safe: what was written to an active snapshot is nowhere else.
    fn orphans(&self, live: &Kept, findings: &mut Vec<Finding>) {
        let labelled: Vec<NodeId> = self
            .roots()
            .iter()
            .filter(|(node, root)| *root == Root::Label && !live.contains(*node))
            .map(|r| r.0)
            .collect();
        for subject in labelled.iter().copied() {
            let (class, things) = match self.kind(subject) {
                NodeKind::Snapshot if self.downwards(subject).skip(1).any(|node| labelled.contains(&node)) => continue,
                NodeKind::Snapshot => (Class::OrphanSnapshot, self.with_all_above(subject)),
                _ => (Class::OrphanBlob, vec![subject]),
            };
            let frees = self.cost(&things).alone;
            let mend = Mend::Remove(things.clone());
            findings.push(Finding { class, subject, things, frees, mend });
        }
    }

    /// A snapshot and what lies on it, what lies on others first: in this order they can be removed.
    pub fn with_all_above(&self, snapshot: NodeId) -> Vec<NodeId> {
        let mut found = vec![snapshot];
        let mut at = 0;
        while let Some(node) = found.get(at).copied() {
            let above = self.referrers(node).filter(|edge| edge.why == Why::Parent).map(|edge| edge.node);
            let new: Vec<NodeId> = above.filter(|node| !found.contains(node)).collect();
            found.extend(new);
            at += 1;
        }
        found.reverse();
        found
    }

    /// What nothing keeps and is older than an hour, by namespace: a lease has run out, or something was removed, and no
    /// collection has come since. containerd collects when a client waits for it and after a hundred changes. Safe: it decides
    /// itself what goes.
    fn uncollected(&self, findings: &mut Vec<Finding>) {
        let kept = self.kept();
        let mut all: BTreeMap<NamespaceId, Vec<NodeId>> = BTreeMap::new();
        let is_settled = |node: &NodeId| match self.node(*node) {
            Node::Blob(row) => self.is_older(row.created, SETTLED),
            Node::Snapshot(row) => self.is_older(row.created, SETTLED),
            _ => false,
        };
        for node in self.garbage().into_iter().filter(is_settled) {
            all.entry(self.node(node).namespace()).or_default().push(node);
        }
        for things in all.into_values() {
            let frees = self.weigh_gone(things.iter().copied(), &kept);
            findings.push(Finding { class: Class::Garbage, subject: things[0], things, frees, mend: Mend::Collect });
        }
    }

    /// The records of a namespace that CRI can take in: an image for this platform, and here whole.
    fn here<'m>(&'m self, namespace: NamespaceId, facts: &'m Facts) -> impl Iterator<Item = NodeId> + 'm {
        self.nodes(NodeKind::Record).filter(move |record| {
            self.node(*record).namespace() == namespace
                && !facts.foreign.contains(record)
                && self.target(*record).is_some_and(|target| self.lacking(target, facts).is_empty())
        })
    }

    /// What a record points at.
    pub fn target(&self, record: NodeId) -> Option<NodeId> {
        self.references(record).find(|edge| edge.why == Why::Target).map(|edge| edge.node)
    }

    /// The image ID for this platform, if its config is here.
    fn id_here(&self, record: NodeId, facts: &Facts) -> Option<ImageId> {
        let target = self.target(record)?;
        let manifest = match facts.hosts.get(&target) {
            Some(manifest) => *manifest,
            None if self.manifests(target).is_empty() => target,
            None => return None,
        };
        match self.node(self.config(manifest)?) {
            Node::Blob(config) => Some(ImageId::new(config.digest.clone())),
            _ => None,
        }
    }
}
