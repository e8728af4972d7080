//! What each record's target is and reaches.

use std::ops::Deref;
use std::sync::Arc;

use orlop_oci::{ChainId, Digest, DigestTable, ImageId, Platform, PlatformMatcher};

use crate::Builder;
use crate::build::{Holder, NamespaceNumber, Numbered, NumberedManifest, Place};
use crate::intern::{Bits, FastMap, Marks, Number};

const NONE: Number = Number::MAX;

/// Everything that was taken in, by number.
#[derive(Debug)]
pub(crate) struct Store {
    base: Arc<Base>,
    pub(crate) records: Vec<Numbered>,
    pub(crate) holders: Vec<Holder>,
}

/// All but who names it: several graphs may have the same.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) digests: Arc<DigestTable>,
    /// By number of digest: its size if the blob is there.
    sizes: Vec<u64>,
    /// By namespace: the blobs it has.
    here: Vec<Bits>,
    namespaces: Vec<Arc<str>>,
    pub(crate) snapshots: Vec<(Place, u64)>,
    /// By number of a chain ID: its first snapshot, for they are sorted by that; and behind the last number, how many there are.
    first_of: Vec<u32>,
    /// By number of a chain ID: the chain ID of the layers below.
    below: Vec<Number>,
    documents: Vec<Document>,
    /// By number of digest: the document, or `NONE`.
    document_of: Vec<u32>,
    links: FastMap<Number, Vec<Number>>,
    wanted: PlatformMatcher,
}

impl Deref for Store {
    type Target = Base;

    fn deref(&self) -> &Base {
        &self.base
    }
}

/// A manifest or index.
#[derive(Debug)]
struct Document {
    manifest: NumberedManifest,
    /// The chain ID of all layers.
    top: Option<Number>,
    /// How the wanted platforms rank that of the manifest; worst: none of them.
    rank: usize,
}

/// What a target is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Target {
    pub(crate) image_id: Option<ImageId>,
    pub(crate) platforms: Vec<Arc<Platform>>,
    pub(crate) complete: bool,
    /// Target, manifest, config and layers of the wanted platform, as the documents say.
    pub(crate) listed_size: u64,
}

/// A manifest within a target, with the platform that the index or else the config says.
#[derive(Clone, Copy)]
struct Leaf<'a> {
    document: &'a Document,
    platform: Option<&'a Arc<Platform>>,
    /// Whether the platform is the manifest's own.
    is_own: bool,
    complete: bool,
}

impl Store {
    pub(crate) fn new(mut builder: Builder) -> Self {
        let (records, holders) = (std::mem::take(&mut builder.records), std::mem::take(&mut builder.holders));
        Self { base: Arc::new(Base::new(builder)), records, holders }
    }

    /// The same with other records, and without holders.
    pub(crate) fn over(base: Arc<Base>, records: Vec<Numbered>) -> Self {
        Self { base, records, holders: Vec::new() }
    }

    pub(crate) fn base(&self) -> &Arc<Base> {
        &self.base
    }
}

impl Base {
    fn new(mut builder: Builder) -> Self {
        let length = builder.digests.len();
        let (snapshots, first_of) = by_chain(&builder.snapshots, length);
        builder.sizes.resize(length, 0);
        let mut base = Self {
            digests: builder.digests,
            sizes: builder.sizes,
            here: builder.here,
            namespaces: builder.namespaces,
            snapshots,
            first_of,
            below: vec![NONE; length],
            documents: Vec::with_capacity(builder.manifests.len()),
            document_of: vec![NONE; length],
            links: FastMap::default(),
            wanted: builder.wanted,
        };
        let mut ranks = Vec::new();
        for (number, manifest) in builder.manifests {
            base.document_of[number as usize] = base.documents.len() as u32;
            base.take(manifest, &mut ranks);
        }
        for (from, to) in builder.links {
            base.links.entry(from).or_default().push(to);
        }
        base
    }

    /// Takes in a document.
    fn take(&mut self, mut manifest: NumberedManifest, ranks: &mut Vec<(Arc<Platform>, usize)>) {
        let chain = std::mem::take(&mut manifest.chain);
        // From the top down; where a chain ID is known already, so is everything below it.
        for pair in chain.windows(2).rev() {
            let below = &mut self.below[pair[1] as usize];
            if *below != NONE {
                break;
            }
            *below = pair[0];
        }
        let rank = manifest.platform.as_ref().map_or(usize::MAX, |platform| {
            // There are few platforms, each of them in one place.
            let known = ranks.iter().find(|(known, _)| Arc::ptr_eq(known, platform) || known == platform);
            known.map(|(_, rank)| *rank).unwrap_or_else(|| {
                let rank = self.wanted.rank(platform).unwrap_or(usize::MAX);
                ranks.push((platform.clone(), rank));
                rank
            })
        });
        self.documents.push(Document { manifest, top: chain.last().copied(), rank });
    }

    pub(crate) fn namespace(&self, number: NamespaceNumber) -> &Arc<str> {
        &self.namespaces[number as usize]
    }

    fn namespace_number(&self, name: &str) -> Option<NamespaceNumber> {
        self.namespaces.iter().position(|n| **n == *name).map(|at| at as NamespaceNumber)
    }

    pub(crate) fn blob_size(&self, number: Number) -> u64 {
        self.sizes[number as usize]
    }

    /// Marks for blobs and for snapshots.
    pub(crate) fn marks(&self) -> (Marks, Marks) {
        (Marks::new(self.digests.len()), Marks::new(self.snapshots.len()))
    }

    fn document(&self, number: Number) -> Option<&Document> {
        self.documents.get(self.document_of[number as usize] as usize)
    }

    /// Marks everything below a blob, and tells of it. A document that is not there holds nothing.
    pub(crate) fn reach(
        &self,
        namespace: NamespaceNumber,
        start: Number,
        marks: &mut (Marks, Marks),
        blob: &mut impl FnMut(Number),
        snapshot: &mut impl FnMut(u32),
    ) {
        let here = &self.here[namespace as usize];
        let mut stack = vec![start];
        while let Some(number) = stack.pop() {
            if !here.contains(number) || !marks.0.insert(number) {
                continue;
            }
            blob(number);
            stack.extend(self.links.get(&number).into_iter().flatten());
            let Some(document) = self.document(number) else { continue };
            stack.extend(document.children());
            if let Some(top) = document.top {
                self.reach_chain((namespace, top), &mut marks.1, snapshot);
            }
        }
    }

    /// Marks the snapshots of a chain, if its top is there: collection keeps the lower ones only as parents.
    fn reach_chain(&self, top: Place, marks: &mut Marks, snapshot: &mut impl FnMut(u32)) {
        let (namespace, mut chain) = top;
        while let Some(&[first, end]) = self.first_of.get(chain as usize..).and_then(<[u32]>::first_chunk) {
            // A chain that was seen is seen to its end.
            let mut is_here = false;
            for at in (first..end).filter(|at| self.snapshots[*at as usize].0.0 == namespace) {
                if !marks.insert(at) {
                    return;
                }
                snapshot(at);
                is_here = true;
            }
            if !is_here {
                return;
            }
            chain = self.below[chain as usize];
        }
    }

    /// The same for a blob by name.
    pub(crate) fn reach_blob_of(&self, namespace: &str, blob: &Digest, marks: &mut (Marks, Marks)) {
        if let (Some(namespace), Some(blob)) = (self.namespace_number(namespace), self.digests.get(blob)) {
            self.reach(namespace, blob, marks, &mut |_| {}, &mut |_| {});
        }
    }

    /// The same for a chain by name.
    pub(crate) fn reach_chain_of(&self, namespace: &str, top: &ChainId, marks: &mut Marks) {
        if let (Some(namespace), Some(top)) = (self.namespace_number(namespace), self.digests.get(top.digest())) {
            self.reach_chain((namespace, top), marks, &mut |_| {});
        }
    }

    /// Image ID, platforms, completeness and size of a target.
    pub(crate) fn describe(&self, namespace: NamespaceNumber, number: Number, opened: &mut Marks) -> Target {
        let mut found = Target::default();
        let here = &self.here[namespace as usize];
        let Some(top) = self.document(number).filter(|_| here.contains(number)) else { return found };
        let manifest = &top.manifest;
        if manifest.manifests.is_empty() {
            found.image_id = self.image_id(manifest);
            found.complete = top.is_complete(here);
            found.platforms.extend(manifest.platform.clone().filter(|p| found.complete && !p.is_unknown()));
            found.listed_size = manifest.size.saturating_add(contents(manifest));
            return found;
        }
        let (leaves, all_here) = self.leaves(here, number, opened);
        let best = leaves.iter().filter(|l| l.document.manifest.image_id.is_some()).min_by_key(|l| self.rank(l));
        found.image_id = best.and_then(|l| self.image_id(&l.document.manifest));
        found.complete = best.map_or(all_here, |l| l.complete);
        for platform in leaves.iter().filter(|l| l.complete).filter_map(|l| l.platform) {
            if !found.platforms.contains(platform) {
                found.platforms.push(platform.clone());
            }
        }
        let chosen = best.map(|l| &l.document.manifest);
        let below = chosen.map_or(0, |m| m.size.saturating_add(contents(m)));
        found.listed_size = manifest.size.saturating_add(below);
        found
    }

    fn image_id(&self, manifest: &NumberedManifest) -> Option<ImageId> {
        manifest.image_id.map(|number| ImageId::new(self.digests.digest(number)))
    }

    fn rank(&self, leaf: &Leaf<'_>) -> usize {
        match leaf.platform {
            Some(_) if leaf.is_own => leaf.document.rank,
            Some(platform) => self.wanted.rank(platform).unwrap_or(usize::MAX),
            None => usize::MAX,
        }
    }

    /// The manifests of an index that are there and are of a platform (attestations are of none), in document order,
    /// nested indexes opened; and whether all that the index names is complete.
    fn leaves(&self, here: &Bits, index: Number, opened: &mut Marks) -> (Vec<Leaf<'_>>, bool) {
        let mut leaves = Vec::new();
        let mut all_here = true;
        opened.clear();
        opened.insert(index);
        let mut stack: Vec<(Number, Option<&Arc<Platform>>)> = vec![(index, None)];
        while let Some((number, platform)) = stack.pop() {
            let Some(document) = self.document(number).filter(|_| here.contains(number)) else {
                all_here = false;
                continue;
            };
            let manifest = &document.manifest;
            if manifest.manifests.is_empty() {
                let complete = document.is_complete(here);
                all_here &= complete;
                let is_own = platform.is_none();
                let platform = platform.or(manifest.platform.as_ref());
                if !platform.is_some_and(|p| p.is_unknown()) {
                    leaves.push(Leaf { document, platform, is_own, complete });
                }
                continue;
            }
            let children = manifest.manifests.iter().rev();
            stack.extend(children.filter(|(n, _, _)| opened.insert(*n)).map(|(n, _, p)| (*n, p.as_ref())));
        }
        (leaves, all_here)
    }

    /// Whether a target leads to a document that is there and of which nothing is known.
    pub(crate) fn is_unknown(&self, namespace: NamespaceNumber, target: Number, opened: &mut Marks) -> bool {
        let here = &self.here[namespace as usize];
        opened.clear();
        let mut stack = vec![target];
        while let Some(number) = stack.pop() {
            if !opened.insert(number) {
                continue;
            }
            match self.document(number) {
                Some(document) => stack.extend(document.manifest.manifests.iter().map(|(n, _, _)| *n)),
                None if here.contains(number) => return true,
                None => {}
            }
        }
        false
    }
}

impl Document {
    /// Config, layers, and an index's manifests.
    fn children(&self) -> impl Iterator<Item = Number> {
        let NumberedManifest { image_id, layers, manifests, .. } = &self.manifest;
        image_id.iter().copied().chain(layers.iter().map(|l| l.0)).chain(manifests.iter().map(|m| m.0))
    }

    fn is_complete(&self, here: &Bits) -> bool {
        self.children().all(|number| here.contains(number))
    }
}

/// Config and layers as the manifest states them, whether they are there or not.
fn contents(manifest: &NumberedManifest) -> u64 {
    manifest.layers.iter().fold(manifest.config_size, |sum, (_, size)| sum.saturating_add(*size))
}

/// Sorts snapshots by chain ID, of which there are so many; with where each one's begin.
fn by_chain(snapshots: &[(Place, u64)], digests: usize) -> (Vec<(Place, u64)>, Vec<u32>) {
    let mut first_of = vec![0; digests + 1];
    snapshots.iter().for_each(|((_, chain), _)| first_of[*chain as usize + 1] += 1);
    for at in 0..digests {
        first_of[at + 1] += first_of[at];
    }
    let (mut next, mut sorted) = (first_of.clone(), vec![((0, 0), 0); snapshots.len()]);
    for snapshot in snapshots {
        let place = &mut next[snapshot.0.1 as usize];
        sorted[*place as usize] = *snapshot;
        *place += 1;
    }
    (sorted, first_of)
}
