//! What each record's target is and reaches.

use std::ops::Range;

use orlop_oci::{ImageId, Kind, Platform, PlatformMatcher, classify};

use crate::Builder;
use crate::build::{Holder, Manifest, Place, Record};
use crate::intern::{Digests, FastMap, Marks, Number};

const NONE: Number = Number::MAX;

/// A document's numbers, within [`Store::numbers`].
#[derive(Debug, Clone, Default)]
struct Document {
    /// Config, layers, and an index's manifests.
    children: Range<usize>,
    /// The chain ID of all layers.
    top: Option<Number>,
}

/// Everything that was taken in, by number.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) digests: Digests,
    sizes: Vec<Option<u64>>,
    namespaces: Vec<String>,
    pub(crate) snapshots: Vec<(Place, u64)>,
    /// Snapshots of a namespace and chain, as a range: they are sorted.
    by_place: FastMap<Place, Range<u32>>,
    /// By number of a chain ID: the chain ID of the layers below.
    below: Vec<Number>,
    manifests: Vec<Manifest>,
    documents: Vec<Document>,
    /// By number of digest: the document, or `NONE`.
    document_of: Vec<u32>,
    numbers: Vec<Number>,
    links: FastMap<Number, Vec<Number>>,
    wanted: PlatformMatcher,
    /// Until the graph takes them.
    pub(crate) records: Vec<Record>,
    /// By record: the kind of its name.
    pub(crate) kinds: Vec<Kind>,
    /// By record: whether it is a reason to keep its image.
    pub(crate) is_name: Vec<bool>,
    pub(crate) holders: Vec<Holder>,
}

/// What a target is and reaches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Target {
    /// Blobs that are there.
    pub(crate) blobs: Vec<Number>,
    /// Snapshots, as positions.
    pub(crate) snapshots: Vec<u32>,
    pub(crate) image_id: Option<ImageId>,
    pub(crate) platforms: Vec<Platform>,
    pub(crate) complete: bool,
    /// Target, manifest, config and layers of the wanted platform, as the documents say.
    pub(crate) listed_size: u64,
}

/// A manifest within a target, with the platform that the index or else the config says.
#[derive(Clone, Copy)]
struct Leaf<'a> {
    manifest: &'a Manifest,
    platform: Option<&'a Platform>,
    complete: bool,
}

impl Store {
    pub(crate) fn new(mut builder: Builder) -> Self {
        for at in 0..builder.records.len() {
            let namespace = builder.records[at].namespace.clone();
            builder.namespace(&namespace);
            builder.digests.add(&builder.records[at].target.clone());
        }
        builder.snapshots.sort_unstable();
        let kinds: Vec<Kind> = builder.records.iter().map(|r| classify(&r.name)).collect();
        let mut is_name: Vec<bool> = kinds.iter().map(|k| !k.is_hash_reference()).collect();
        builder.requested.iter().for_each(|at| is_name[*at] = true);
        let mut store = Self {
            digests: builder.digests,
            sizes: builder.sizes,
            namespaces: builder.namespaces,
            by_place: places(&builder.snapshots),
            snapshots: builder.snapshots,
            below: Vec::new(),
            manifests: Vec::with_capacity(builder.manifests.len()),
            documents: Vec::with_capacity(builder.manifests.len()),
            document_of: Vec::new(),
            numbers: Vec::new(),
            links: FastMap::default(),
            wanted: builder.wanted,
            records: builder.records,
            kinds,
            is_name,
            holders: builder.holders,
        };
        let manifests: Vec<(Number, Manifest)> = builder.manifests.into_iter().collect();
        let order: Vec<Number> = manifests.iter().map(|(number, _)| *number).collect();
        for (_, manifest) in manifests {
            store.take(manifest);
        }
        for (from, to) in builder.links {
            store.links.entry(from).or_default().push(to);
        }
        let length = store.digests.len();
        store.sizes.resize(length, None);
        store.below.resize(length, NONE);
        store.document_of.resize(length, NONE);
        for (at, number) in order.into_iter().enumerate() {
            store.document_of[number as usize] = at as u32;
        }
        store
    }

    /// Numbers what a document refers to.
    fn take(&mut self, manifest: Manifest) {
        let start = self.numbers.len();
        self.numbers.extend(manifest.image_id.iter().map(|id| self.digests.add(id.digest())));
        self.numbers.extend(manifest.layers.iter().map(|(digest, _)| self.digests.add(digest)));
        self.numbers.extend(manifest.manifests.iter().map(|(digest, _, _)| self.digests.add(digest)));
        let mut above = None;
        let mut top = None;
        // From the top down; where a chain ID is known already, so is everything below it.
        for chain in manifest.chain.iter().rev() {
            let number = self.digests.add(chain.digest());
            top = top.or(Some(number));
            if let Some(above) = above.replace(number) {
                if self.below.len() <= above as usize {
                    self.below.resize(above as usize + 1, NONE);
                }
                if self.below[above as usize] != NONE {
                    break;
                }
                self.below[above as usize] = number;
            }
        }
        self.documents.push(Document { children: start..self.numbers.len(), top });
        self.manifests.push(manifest);
    }

    fn namespace(&self, name: &str) -> Option<u32> {
        self.namespaces.iter().position(|n| n == name).map(|at| at as u32)
    }

    pub(crate) fn blob_size(&self, number: Number) -> u64 {
        self.sizes[number as usize].unwrap_or(0)
    }

    /// Marks for blobs and for snapshots.
    pub(crate) fn marks(&self) -> (Marks, Marks) {
        (Marks::new(self.digests.len()), Marks::new(self.snapshots.len()))
    }

    /// The document of a blob that is there.
    fn document(&self, number: Number) -> Option<(&Document, &Manifest)> {
        let at = self.document_of[number as usize];
        let known = at != NONE && self.sizes[number as usize].is_some();
        known.then(|| (&self.documents[at as usize], &self.manifests[at as usize]))
    }

    /// Finds what a record's target is and reaches.
    pub(crate) fn target(&self, namespace: &str, digest: Number, marks: &mut (Marks, Marks)) -> Target {
        let mut found = Target::default();
        marks.0.clear();
        marks.1.clear();
        self.reach(namespace, digest, marks, &mut |n| found.blobs.push(n), &mut |n| found.snapshots.push(n));
        marks.0.clear();
        self.describe(digest, &mut marks.0, &mut found);
        found
    }

    /// Marks everything below a blob, and tells of it. A document that is not there holds nothing.
    pub(crate) fn reach(
        &self,
        namespace: &str,
        start: Number,
        marks: &mut (Marks, Marks),
        blob: &mut impl FnMut(Number),
        snapshot: &mut impl FnMut(u32),
    ) {
        let namespace = self.namespace(namespace);
        let mut stack = vec![start];
        while let Some(number) = stack.pop() {
            if self.sizes[number as usize].is_none() || !marks.0.insert(number) {
                continue;
            }
            blob(number);
            stack.extend(self.links.get(&number).into_iter().flatten());
            let Some((document, _)) = self.document(number) else { continue };
            stack.extend(&self.numbers[document.children.clone()]);
            if let (Some(namespace), Some(top)) = (namespace, document.top) {
                self.reach_chain((namespace, top), &mut marks.1, snapshot);
            }
        }
    }

    /// Marks the snapshots of a chain, if its top is there: collection keeps the lower ones only as parents.
    fn reach_chain(&self, top: Place, marks: &mut Marks, snapshot: &mut impl FnMut(u32)) {
        let mut place = top;
        while let Some(range) = self.by_place.get(&place) {
            // A chain that was seen is seen to its end.
            for at in range.clone() {
                if !marks.insert(at) {
                    return;
                }
                snapshot(at);
            }
            place.1 = self.below[place.1 as usize];
        }
    }

    /// The same for a chain by name.
    pub(crate) fn reach_chain_of(
        &self,
        namespace: &str,
        top: &orlop_oci::ChainId,
        marks: &mut Marks,
        snapshot: &mut impl FnMut(u32),
    ) {
        if let (Some(namespace), Some(top)) = (self.namespace(namespace), self.digests.get(top.digest())) {
            self.reach_chain((namespace, top), marks, snapshot);
        }
    }

    /// Image ID, platforms, completeness and size of a target.
    fn describe(&self, number: Number, opened: &mut Marks, found: &mut Target) {
        let Some((document, top)) = self.document(number) else { return };
        if top.manifests.is_empty() {
            found.image_id = top.image_id.clone();
            found.complete = self.is_complete(document);
            found.platforms.extend(top.platform.clone().filter(|p| found.complete && !p.is_unknown()));
            found.listed_size = top.size + contents(top);
            return;
        }
        let (leaves, all_here) = self.leaves(number, opened);
        let rank = |leaf: &Leaf<'_>| leaf.platform.and_then(|p| self.wanted.rank(p)).unwrap_or(usize::MAX);
        let best = leaves.iter().filter(|l| l.manifest.image_id.is_some()).min_by_key(|l| rank(l));
        found.image_id = best.and_then(|l| l.manifest.image_id.clone());
        found.complete = best.map_or(all_here, |l| l.complete);
        for platform in leaves.iter().filter(|l| l.complete).filter_map(|l| l.platform) {
            if !found.platforms.contains(platform) {
                found.platforms.push(platform.clone());
            }
        }
        found.listed_size = top.size + best.map_or(0, |l| l.manifest.size + contents(l.manifest));
    }

    /// The manifests of an index that are there and are of a platform (attestations are of none), in document order,
    /// nested indexes opened; and whether all that the index names is complete.
    fn leaves(&self, index: Number, opened: &mut Marks) -> (Vec<Leaf<'_>>, bool) {
        let mut leaves = Vec::new();
        let mut all_here = true;
        opened.insert(index);
        let mut stack: Vec<(Number, Option<&Platform>)> = vec![(index, None)];
        while let Some((number, platform)) = stack.pop() {
            let Some((document, manifest)) = self.document(number) else {
                all_here = false;
                continue;
            };
            if manifest.manifests.is_empty() {
                let complete = self.is_complete(document);
                all_here &= complete;
                let platform = platform.or(manifest.platform.as_ref());
                if !platform.is_some_and(Platform::is_unknown) {
                    leaves.push(Leaf { manifest, platform, complete });
                }
                continue;
            }
            let children = &self.numbers[document.children.end - manifest.manifests.len()..document.children.end];
            let children = children.iter().zip(&manifest.manifests).rev();
            stack.extend(children.filter(|(n, _)| opened.insert(**n)).map(|(n, (_, _, p))| (*n, p.as_ref())));
        }
        (leaves, all_here)
    }

    fn is_complete(&self, document: &Document) -> bool {
        self.numbers[document.children.clone()].iter().all(|n| self.sizes[*n as usize].is_some())
    }
}

/// Config and layers as the manifest states them, whether they are there or not.
fn contents(manifest: &Manifest) -> u64 {
    manifest.config_size + manifest.layers.iter().map(|(_, size)| size).sum::<u64>()
}

fn places(sorted: &[(Place, u64)]) -> FastMap<Place, Range<u32>> {
    let mut places = FastMap::default();
    places.reserve(sorted.len());
    let mut start = 0;
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let end = start + same.len() as u32;
        places.insert(same[0].0, start..end);
        start = end;
    }
    places
}
