//! What removing records would do, before it is done.

use std::collections::{BTreeSet, HashMap};

use orlop_oci::{Digest, Kind, Reference, RepositoryName};

use super::{GONE, Kept, Model, NamespaceId, Node, NodeId, NodeKind, PINNED, SOURCE, Weight, Why};

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
    /// Names that are removed and whose targets no registry is known to have.
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
        let asked: BTreeSet<NodeId> = asked.iter().copied().collect();
        let mut going = asked.clone();
        let names: Vec<&NodeId> = asked.iter().filter(|record| self.is_name(**record)).collect();
        let families = if names.is_empty() { Families::default() } else { Families::of(self) };
        for record in names {
            let siblings = families.siblings(self, *record);
            let is_left = |other: &&NodeId| self.is_name(**other) && !asked.contains(other);
            if !siblings.iter().any(|other| is_left(&other)) {
                going.extend(siblings.into_iter().filter(|other| self.record_kind(*other).is_hash_reference()));
            } else {
                // Other names stay: only what was written beside this one goes with it.
                going.extend(siblings.into_iter().filter(|other| self.belongs_to(*other, *record, &asked)));
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
    fn belongs_to(&self, digest: NodeId, tag: NodeId, asked: &BTreeSet<NodeId>) -> bool {
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

    /// Of the names that go, those whose target would be gone although no registry is known to have it.
    fn unpullable(&self, records: &[NodeId], after: &Kept) -> Vec<NodeId> {
        let is_lost = |name: &NodeId| self.without_source(&[*name]).is_some_and(|target| !self.any_copy(target, after));
        records.iter().copied().filter(|record| self.is_name(*record) && is_lost(record)).collect()
    }

    /// A target of these records that is here and that no registry is known to have, if there is one. A registry that has a
    /// manifest or index has what that names.
    pub fn without_source(&self, records: &[NodeId]) -> Option<NodeId> {
        let targets = records.iter().filter_map(|record| self.target(*record));
        targets.filter(|target| self.kind(*target) == NodeKind::Blob).find(|target| !self.has_source(*target))
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

/// Records of one namespace that have the same target, or lead to the same image ID.
#[derive(Default)]
struct Families {
    ids: HashMap<NodeId, Digest>,
    by_id: HashMap<(NamespaceId, Digest), Vec<NodeId>>,
}

impl Families {
    fn of(model: &Model) -> Self {
        let (mut ids, mut by_id) = (HashMap::new(), HashMap::<_, Vec<NodeId>>::new());
        for record in model.nodes(NodeKind::Record) {
            if let Some(id) = model.image_id(record) {
                let id = id.digest().clone();
                by_id.entry((model.node(record).namespace(), id.clone())).or_default().push(record);
                ids.insert(record, id);
            }
        }
        Self { ids, by_id }
    }

    fn siblings(&self, model: &Model, record: NodeId) -> BTreeSet<NodeId> {
        let targets = model.target(record).into_iter().flat_map(|target| model.referrers(target));
        let mut siblings: BTreeSet<NodeId> =
            targets.filter(|edge| edge.why == Why::Target).map(|edge| edge.node).collect();
        if let Some(id) = self.ids.get(&record) {
            let key = (model.node(record).namespace(), id.clone());
            siblings.extend(self.by_id.get(&key).into_iter().flatten());
        }
        siblings
    }
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|word| !word.is_empty())
}

pub(super) fn repository(name: &str) -> Option<RepositoryName> {
    name.parse::<Reference>().ok()?.repository().cloned()
}
