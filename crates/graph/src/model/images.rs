//! Images: which records are names of one, what a blob is within one, what each takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use orlop_oci::{Digest, ImageId, Kind, Reference, classify};

use super::{Model, NamespaceId, Node, NodeId, NodeKind, Why};

const CONFIG: &str = "containerd.io/gc.ref.content.config";
const MANIFEST: &str = "containerd.io/gc.ref.content.m.";
const LAYER: &str = "containerd.io/gc.ref.content.l.";

/// What a blob is, as the labels tell: its own, and those of what refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It lists manifests.
    Index,
    /// It has a config and layers.
    Manifest,
    /// A manifest's config.
    Config,
    /// A manifest's layer.
    Layer,
    /// Nothing tells.
    Other,
}

/// All records of a namespace that are names of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNames {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The image ID, where it is known.
    pub image_id: Option<ImageId>,
    /// The records, by name.
    pub records: Vec<NodeId>,
}

/// What an image takes, in bytes; each digest once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageSize {
    /// Its blobs that are here.
    pub compressed: u64,
    /// Its snapshots, as far as they are measured.
    pub unpacked: u64,
    /// Of both, what other images keep too.
    pub shared: u64,
    /// Of both, what no other image keeps.
    pub unique: u64,
    /// Snapshots that nobody has measured.
    pub unmeasured: u64,
    /// Blobs that it names and that are not here.
    pub missing: u64,
}

impl Model {
    /// What a blob is.
    pub fn role(&self, blob: NodeId) -> Role {
        let labels = self.labels(blob);
        if labels.starting(MANIFEST).next().is_some() {
            return Role::Index;
        }
        if labels.get(CONFIG).is_some() {
            return Role::Manifest;
        }
        let told = self.referrers(blob).filter_map(|edge| match edge.why {
            Why::Label(CONFIG) => Some(Role::Config),
            Why::Label(key) if key.starts_with(LAYER) => Some(Role::Layer),
            Why::Label(key) if key.starts_with(MANIFEST) => Some(Role::Manifest),
            _ => None,
        });
        told.min().unwrap_or(Role::Other)
    }

    /// The kind of a record's name.
    ///
    /// # Panics
    /// If the node is no record.
    pub fn record_kind(&self, record: NodeId) -> Kind {
        match self.node(record) {
            Node::Record(row) => classify(&row.name),
            other => panic!("a record was expected, found {other:?}"),
        }
    }

    /// The image ID that a record leads to, as far as names and labels tell: the name itself, the config that the target's
    /// labels name, or an ID record with the same target. Of an index with several images here and no ID record: none.
    pub fn image_id(&self, record: NodeId) -> Option<ImageId> {
        let Node::Record(row) = self.node(record) else { return None };
        if let Ok(Reference::Id(id)) = row.name.parse() {
            return Some(id);
        }
        let target = self.references(record).find(|edge| edge.why == Why::Target)?.node;
        if let Some(config) = self.labels(target).get(CONFIG) {
            return Some(ImageId::new(config.parse().ok()?));
        }
        let named = self.referrers(target).filter(|edge| edge.why == Why::Target).find_map(|edge| {
            let Node::Record(other) = self.node(edge.node) else { return None };
            match other.name.parse() {
                Ok(Reference::Id(id)) => Some(id),
                _ => None,
            }
        });
        named.or_else(|| {
            let manifests = self.references(target).filter(|edge| is_manifest(edge.why)).map(|edge| edge.node);
            let mut configs: BTreeSet<&str> = manifests.filter_map(|m| self.config_here(m)).collect();
            let only = configs.pop_first().filter(|_| configs.is_empty())?;
            Some(ImageId::new(only.parse().ok()?))
        })
    }

    /// The config of a manifest that is here with its config.
    fn config_here(&self, manifest: NodeId) -> Option<&str> {
        let config = self.references(manifest).find(|edge| edge.why == Why::Label(CONFIG))?;
        (self.kind(config.node) == NodeKind::Blob).then(|| self.labels(manifest).get(CONFIG)).flatten()
    }

    /// Records in all namespaces that are names of the same image as this one, itself included: they point at the same
    /// target or lead to the same image ID.
    pub fn family(&self, record: NodeId) -> Vec<NodeId> {
        let Node::Record(row) = self.node(record) else { return Vec::new() };
        let (target, id) = (row.target.clone(), self.image_id(record));
        let same = |other: &NodeId| match self.node(*other) {
            Node::Record(row) => row.target == target || (id.is_some() && self.image_id(*other) == id),
            _ => false,
        };
        self.nodes(NodeKind::Record).filter(same).collect()
    }

    /// Every record, by the image that it names, by namespace and first name; images known only by hash references last.
    pub fn images(&self) -> Vec<ImageNames> {
        let mut known: HashMap<(NamespaceId, Digest), usize> = HashMap::new();
        let mut images: Vec<ImageNames> = Vec::new();
        for record in self.nodes(NodeKind::Record) {
            let Node::Record(row) = self.node(record) else { continue };
            let image_id = self.image_id(record);
            let identity = image_id.as_ref().map_or_else(|| row.target.clone(), |id| id.digest().clone());
            let at = *known.entry((row.namespace, identity)).or_insert_with(|| {
                images.push(ImageNames { namespace: row.namespace, image_id, records: Vec::new() });
                images.len() - 1
            });
            images[at].records.push(record);
        }
        let name = |record: NodeId| match self.node(record) {
            Node::Record(row) => row.name.clone(),
            _ => "".into(),
        };
        for image in &mut images {
            image.records.sort_by_cached_key(|record| name(*record));
        }
        images.sort_by_cached_key(|image| {
            let tag = image.records.iter().find(|r| !self.record_kind(**r).is_hash_reference());
            (image.namespace, tag.is_none(), name(*tag.unwrap_or(&image.records[0])))
        });
        images
    }

    /// What each of these images takes.
    pub fn sizes(&self, images: &[ImageNames]) -> Vec<ImageSize> {
        self.sizes_of(&images.iter().map(|image| image.records.clone()).collect::<Vec<_>>())
    }

    /// The same of any groups of records; shared is what several groups keep.
    pub fn sizes_of(&self, groups: &[Vec<NodeId>]) -> Vec<ImageSize> {
        let mut uses: HashMap<NodeId, u32> = HashMap::new();
        let items: Vec<Vec<NodeId>> = groups.iter().map(|records| self.items_of(records)).collect();
        for item in items.iter().flatten() {
            *uses.entry(*item).or_default() += 1;
        }
        let size = |items: &Vec<NodeId>| {
            let mut size = ImageSize::default();
            for item in items {
                let bytes = match self.node(*item) {
                    Node::Blob(row) => {
                        size.compressed += row.size;
                        row.size
                    }
                    Node::Snapshot(row) => {
                        size.unmeasured += u64::from(row.usage.is_none());
                        let bytes = row.usage.unwrap_or_default().bytes;
                        size.unpacked += bytes;
                        bytes
                    }
                    _ => {
                        size.missing += 1;
                        0
                    }
                };
                *(if uses[item] > 1 { &mut size.shared } else { &mut size.unique }) += bytes;
            }
            size
        };
        items.iter().map(size).collect()
    }

    /// Blobs, snapshots and missing blobs that some records reach; of each digest the first copy stands for all.
    pub fn items_of(&self, records: &[NodeId]) -> Vec<NodeId> {
        let mut found = Vec::new();
        let (mut seen, mut counted): (BTreeSet<NodeId>, BTreeSet<NodeId>) = Default::default();
        let mut stack: Vec<NodeId> = records.to_vec();
        while let Some(node) = stack.pop() {
            if !seen.insert(node) {
                continue;
            }
            match self.node(node) {
                Node::Blob(_) => found
                    .extend(self.copies_of(Some(self.digest_number(node))).next().filter(|copy| counted.insert(*copy))),
                Node::Snapshot(_) => found.push(node),
                Node::Missing(missing) if matches!(missing.resource, super::Resource::Content(_)) => found.push(node),
                _ => {}
            }
            stack.extend(self.references(node).map(|edge| edge.node));
        }
        found
    }

    /// An image's snapshots, the lowest first: those that its config names, and what they lie on.
    pub fn snapshots_of(&self, config: NodeId) -> Vec<NodeId> {
        let top = self.references(config).find(|edge| self.kind(edge.node) == NodeKind::Snapshot).map(|edge| edge.node);
        let mut chain: Vec<NodeId> = top.into_iter().flat_map(|top| self.downwards(top)).collect();
        chain.reverse();
        chain
    }

    /// Containers that run on the image of one of these records: the first snapshot below a container's own that is the top
    /// of some image is the top of theirs. Only where there is none does the name count that the container was made with.
    pub fn users(&self, records: &[NodeId]) -> Vec<NodeId> {
        let reached = self.reached(records);
        let mut names: BTreeSet<(NamespaceId, &str)> = BTreeSet::new();
        for record in records {
            if let Node::Record(row) = self.node(*record) {
                names.insert((row.namespace, &row.name));
            }
        }
        let uses = |container: &NodeId| {
            let Node::Container(row) = self.node(*container) else { return false };
            match self.image_top(*container) {
                Some(top) => self.unpacked_from(top).any(|config| reached.contains(config)),
                None => names.contains(&(row.namespace, &*row.image)),
            }
        };
        self.nodes(NodeKind::Container).filter(uses).collect()
    }

    /// The topmost snapshot of the image that a container runs on, or that a snapshot is or lies on.
    pub fn image_top(&self, node: NodeId) -> Option<NodeId> {
        let first = match self.kind(node) {
            NodeKind::Snapshot => Some(node),
            _ => self.references(node).find(|edge| edge.why == Why::RootFs).map(|edge| edge.node),
        };
        let is_top = |node: &NodeId| self.unpacked_from(*node).next().is_some();
        first.into_iter().flat_map(|first| self.downwards(first)).find(is_top)
    }

    /// A snapshot and those that it lies on, down to the lowest that is here.
    pub fn downwards(&self, snapshot: NodeId) -> impl Iterator<Item = NodeId> {
        let is_here = |node: &NodeId| self.kind(*node) == NodeKind::Snapshot;
        let below = move |node: &NodeId| {
            self.references(*node).find(|edge| edge.why == Why::Parent).map(|edge| edge.node).filter(is_here)
        };
        // Parents form no cycle in a sound store; a damaged one must not hang whoever looks.
        std::iter::successors(Some(snapshot).filter(is_here), below).take(self.inventory.snapshots.len())
    }

    /// By record that keeps an image: the containers that run on it, as [`users`](Self::users) tells it of some records. For
    /// who asks of all.
    pub fn all_users(&self) -> BTreeMap<NodeId, Vec<NodeId>> {
        let mut records_above: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        let mut users: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for container in self.nodes(NodeKind::Container) {
            let Node::Container(row) = self.node(container) else { continue };
            let records = match self.image_top(container) {
                Some(top) => records_above.entry(top).or_insert_with(|| self.records_above(top)).clone(),
                None => self.record(row.namespace, &row.image).into_iter().collect(),
            };
            records.into_iter().for_each(|record| users.entry(record).or_default().push(container));
        }
        users
    }

    /// The records that keep an image whose topmost snapshot this is.
    fn records_above(&self, top: NodeId) -> Vec<NodeId> {
        let keepers = self.unpacked_from(top).flat_map(|config| self.keepers(config));
        let mut records: Vec<NodeId> = keepers.filter(|keeper| self.kind(*keeper) == NodeKind::Record).collect();
        records.sort_unstable();
        records.dedup();
        records
    }

    /// Blobs that say of a snapshot that they are unpacked there.
    fn unpacked_from(&self, snapshot: NodeId) -> impl Iterator<Item = NodeId> {
        let is_label = |why| matches!(why, Why::Label(_) | Why::Condition(_));
        self.referrers(snapshot)
            .filter(move |edge| is_label(edge.why))
            .map(|edge| edge.node)
            .filter(|n| self.kind(*n) == NodeKind::Blob)
    }

    /// Layers of a manifest in order: the blob's digest, and the blob where it is here.
    pub fn layers(&self, manifest: NodeId) -> Vec<NodeId> {
        self.numbered(manifest, LAYER)
    }

    /// Manifests of an index in order.
    pub fn manifests(&self, index: NodeId) -> Vec<NodeId> {
        self.numbered(index, MANIFEST)
    }

    /// A manifest's config.
    pub fn config(&self, manifest: NodeId) -> Option<NodeId> {
        self.references(manifest).find(|edge| edge.why == Why::Label(CONFIG)).map(|edge| edge.node)
    }

    /// What the labels `PREFIX<number>` name, by number.
    fn numbered(&self, node: NodeId, prefix: &str) -> Vec<NodeId> {
        let mut found: BTreeMap<u32, NodeId> = BTreeMap::new();
        for edge in self.references(node) {
            if let Why::Label(key) = edge.why
                && let Some(number) = key.strip_prefix(prefix).and_then(|n| n.parse().ok())
            {
                found.insert(number, edge.node);
            }
        }
        found.into_values().collect()
    }
}

fn is_manifest(why: Why<'_>) -> bool {
    matches!(why, Why::Label(key) if key.starts_with(MANIFEST))
}
