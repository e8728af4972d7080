//! What removing records would do, before it is done.

use std::collections::BTreeSet;

use orlop_oci::{Kind, Reference, RepositoryName};

use super::{GONE, Kept, Model, Node, NodeId, NodeKind, PINNED, SOURCE, Weight};

/// What goes if some records are removed and garbage is collected then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removal {
    /// The records that are removed: those asked for, and hash references of images that lose their last name.
    pub records: Vec<NodeId>,
    /// Blobs that the collection takes. A blob that another namespace keeps is not among them: its bytes stay.
    pub blobs: Vec<NodeId>,
    /// Snapshots that the collection takes.
    pub snapshots: Vec<NodeId>,
    /// Everything that goes, garbage of before included.
    pub freed: Weight,
    /// Of that, what was garbage before.
    pub garbage: Weight,
    /// Containers that use what is removed, and leases that keep some of it.
    pub in_use: Vec<NodeId>,
    /// Names that are removed and of whose images some part is known to be in no registry.
    pub unpullable: Vec<NodeId>,
}

impl Model {
    /// What goes if these records are removed, and with the last name of an image its hash references.
    pub fn removal(&self, asked: &[NodeId]) -> Removal {
        let records = self.going(asked);
        let (before, after) = (self.kept(), self.kept_without(&records));
        let gone = |kind| self.nodes(kind).filter(|node| !after.contains(*node));
        let is_last = |blob: &NodeId| match self.node(*blob) {
            Node::Blob(row) => !self.copies(&row.digest).any(|copy| after.contains(copy)),
            _ => false,
        };
        let snapshots: Vec<NodeId> = gone(NodeKind::Snapshot).collect();
        let blobs: Vec<NodeId> = gone(NodeKind::Blob).filter(is_last).collect();
        let all = || blobs.iter().chain(&snapshots).copied();
        Removal {
            freed: self.weigh(all()),
            garbage: self.weigh(all().filter(|node| !self.any_copy(*node, &before))),
            in_use: self.in_use(&records),
            unpullable: self.unpullable(&records, &after),
            records,
            blobs,
            snapshots,
        }
    }

    /// Whether a node, or another copy of the same bytes, is kept.
    fn any_copy(&self, node: NodeId, kept: &Kept) -> bool {
        match self.node(node) {
            Node::Blob(row) => self.copies(&row.digest).any(|copy| kept.contains(copy)),
            _ => kept.contains(node),
        }
    }

    /// The records that go: those asked for; of an image that has no name then, its hash references too.
    fn going(&self, asked: &[NodeId]) -> Vec<NodeId> {
        let mut going: BTreeSet<NodeId> = asked.iter().copied().collect();
        for record in asked.iter().filter(|record| self.is_name(**record)) {
            let namespace = self.node(*record).namespace();
            let mut siblings = self.family(*record);
            siblings.retain(|other| self.node(*other).namespace() == namespace);
            let is_left = |other: &&NodeId| self.is_name(**other) && !asked.contains(other);
            if !siblings.iter().any(|other| is_left(&other)) {
                going.extend(siblings.into_iter().filter(|other| self.record_kind(*other).is_hash_reference()));
            } else {
                // Other names stay: only what was written beside this one goes with it.
                going.extend(siblings.into_iter().filter(|other| self.belongs_to(*other, *record, asked)));
            }
        }
        going.into_iter().collect()
    }

    /// Whether a record is a reason to keep its image: a tag or other name, or a digest reference of a repository of which
    /// no tag leads to the same target, since somebody has asked for that by digest then.
    pub fn is_name(&self, record: NodeId) -> bool {
        match self.record_kind(record) {
            Kind::Tag | Kind::Other => true,
            Kind::Id => false,
            Kind::Digest => !self.tags_beside(record).any(|_| true),
        }
    }

    /// Whether CRI's label says that the kubelet must not remove a record's image.
    pub fn is_pinned(&self, record: NodeId) -> bool {
        self.labels(record).get(PINNED) == Some("pinned")
    }

    /// Tags of the same repository, namespace and target as a digest reference.
    fn tags_beside(&self, record: NodeId) -> impl Iterator<Item = NodeId> {
        let (repository, target) = match self.node(record) {
            Node::Record(row) => (repository(&row.name), self.references(record).next().map(|edge| edge.node)),
            _ => (None, None),
        };
        let others = target.into_iter().flat_map(|target| self.referrers(target)).map(|edge| edge.node);
        others.filter(move |other| match self.node(*other) {
            Node::Record(row) => {
                self.record_kind(*other) == Kind::Tag
                    && repository.is_some()
                    && repository == self::repository(&row.name)
            }
            _ => false,
        })
    }

    /// Whether a digest reference was written beside a tag that goes, and beside no other that stays.
    fn belongs_to(&self, digest: NodeId, tag: NodeId, asked: &[NodeId]) -> bool {
        if self.record_kind(digest) != Kind::Digest {
            return false;
        }
        let beside: Vec<NodeId> = self.tags_beside(digest).collect();
        beside.contains(&tag) && beside.iter().all(|tag| asked.contains(tag))
    }

    /// Containers that use records, and leases that keep something which only they kept else.
    fn in_use(&self, records: &[NodeId]) -> Vec<NodeId> {
        let mut users = self.users(records);
        let reached = self.reached(records);
        let leases = self.nodes(NodeKind::Lease).filter(|lease| self.root(*lease).is_some());
        users.extend(leases.filter(|lease| {
            let held = self.reached(&[*lease]);
            self.items().any(|item| held.contains(item) && reached.contains(item))
        }));
        users
    }

    /// Of the names that go, those of whose image something would be gone that no registry is known to have.
    fn unpullable(&self, records: &[NodeId], after: &Kept) -> Vec<NodeId> {
        let lost = |record: &NodeId| {
            let reached = self.reached(&[*record]);
            self.nodes(NodeKind::Blob)
                .any(|blob| reached.contains(blob) && !self.any_copy(blob, after) && !self.has_source(blob))
        };
        records.iter().copied().filter(|record| self.is_name(*record) && lost(record)).collect()
    }

    /// A blob of an image that is here and that no registry is known to have, if there is one.
    pub fn without_source(&self, records: &[NodeId]) -> Option<NodeId> {
        let is_blob = |node: &NodeId| self.kind(*node) == NodeKind::Blob;
        self.items_of(records).into_iter().filter(is_blob).find(|blob| !self.has_source(*blob))
    }

    /// Whether a blob, in some namespace, came from a repository, or was pushed to one, that has not said since that it has
    /// it no more.
    fn has_source(&self, blob: NodeId) -> bool {
        let Node::Blob(row) = self.node(blob) else { return false };
        let is_known = |copy: NodeId| {
            let labels = self.labels(copy);
            labels.starting(SOURCE).any(|(key, paths)| {
                let gone = labels.get(&format!("{GONE}{}", &key[SOURCE.len()..])).unwrap_or_default();
                words(paths).any(|path| words(gone).all(|gone| gone != path))
            })
        };
        self.copies(&row.digest).any(is_known)
    }
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|word| !word.is_empty())
}

pub(super) fn repository(name: &str) -> Option<RepositoryName> {
    name.parse::<Reference>().ok()?.repository().cloned()
}
