//! The state of the whole store as listings show it, kept in memory and brought up to date when the store has changed.
//!
//! Reading all rows is most of what a listing costs; what a process has read once it follows ([`Store::renew_listing`]).
//! While nothing was committed, every answer is given from the same [`Overview`], which is asked for by the store's version;
//! after a change it is made anew from rows of which only the changed ones were read, and if only records have changed, over
//! what was made of all the rest.
//!
//! # Invariants
//! - An [`Overview`] is what one snapshot of the store says, and never changes. Everything that was committed before
//!   [`Images::overview`] is called is in what it gives, whichever process committed it.
//! - It says what one would say that is made from nothing.
//!
//! # Concurrency
//! Whoever finds it out of date renews it; others that ask meanwhile wait for that. Rows that are being sent keep the one
//! that they are of. If renewing fails, or is given up, the next call starts from nothing.

use std::sync::{Arc, OnceLock};

use orlop_graph::{Builder, Graph, NumberedManifest, Records, Retelling};
use orlop_metadata::{ListedManifest, Listing, ManifestSummary, Scope, Store};
use orlop_oci::{Descriptor, Digest, PlatformMatcher};

use crate::reconcile::is_pinned;
use crate::{Images, Result};

/// All records of a store, with what they lead to.
#[derive(Debug)]
pub(crate) struct Overview {
    listing: Listing,
    wanted: PlatformMatcher,
    /// What was made of all but the records, if it was made before of the same.
    made: Option<Made>,
    /// Made when somebody asks for records alone.
    records: OnceLock<Records>,
    /// Made when somebody asks what images take.
    graph: OnceLock<Graph>,
}

/// An overview, and the version of the store that it is of, or of one before.
pub(crate) struct Kept {
    version: i64,
    overview: Arc<Overview>,
}

/// What was made of all but the records of a listing.
#[derive(Debug, Clone)]
struct Made {
    retelling: Retelling,
    /// What [`Listing::others`] was.
    of: u64,
    /// Whether snapshots are in it.
    depth: Depth,
}

/// How much of an overview is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What each record leads to.
    Records,
    /// And what images take, for which more is read.
    Images,
}

impl Overview {
    fn of(listing: Listing, wanted: PlatformMatcher, depth: Depth, made: Option<Made>) -> Self {
        let fits = |made: &Made| made.of == listing.others() && (made.depth == depth || depth == Depth::Records);
        let made = made.filter(fits);
        let overview = Self { listing, wanted, made, records: OnceLock::new(), graph: OnceLock::new() };
        overview.prepare(depth);
        overview
    }

    /// Makes what will be asked for.
    fn prepare(&self, depth: Depth) {
        match depth {
            Depth::Records => _ = self.records(),
            Depth::Images => _ = self.graph(),
        }
    }

    /// What the next one may use.
    fn made(&self) -> Option<Made> {
        let of_records = || self.made.as_ref().map_or(Depth::Records, |made| made.depth);
        let (records, depth) = match (self.graph.get(), self.records.get()) {
            (Some(graph), _) => (graph.records(), Depth::Images),
            (None, Some(records)) => (records, of_records()),
            (None, None) => return None,
        };
        Some(Made { retelling: records.retelling(), of: self.listing.others(), depth })
    }

    pub(crate) fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Every record, in the order of the listing.
    pub(crate) fn records(&self) -> &Records {
        let make = || match &self.made {
            Some(made) => self.retold(made.retelling.clone()).build_records(),
            None => self.builder(Depth::Records).build_records(),
        };
        self.graph.get().map_or_else(|| self.records.get_or_init(make), Graph::records)
    }

    /// Every image. Of a listing that has no snapshots, what it says of them is nothing.
    pub(crate) fn graph(&self) -> &Graph {
        let made = self.made.as_ref().filter(|made| made.depth == Depth::Images);
        self.graph.get_or_init(|| match made {
            Some(made) => self.retold(made.retelling.clone()).build(),
            None => self.builder(Depth::Images).build(),
        })
    }

    /// What a record points at.
    pub(crate) fn target(&self, at: usize) -> Descriptor {
        let image = &self.listing.images[at];
        Descriptor::new(&*image.media_type, self.listing.digests.digest(image.target), image.size)
    }

    fn builder(&self, depth: Depth) -> Builder {
        let Listing { digests, namespaces, images, blobs, snapshots, manifests, .. } = &self.listing;
        let mut builder = Builder::over(self.wanted.clone(), digests.clone());
        // Namespaces get the numbers they have.
        namespaces.iter().for_each(|name| _ = builder.namespace(name));
        blobs.iter().for_each(|(namespace, digest, size)| builder.blob_at(*namespace, *digest, *size));
        manifests.iter().for_each(|(digest, manifest)| builder.manifest_at(*digest, numbered(manifest)));
        let snapshots = snapshots.iter().filter(|_| depth == Depth::Images);
        snapshots.for_each(|(namespace, chain, bytes)| builder.snapshot_at(*namespace, *chain, *bytes));
        for image in images {
            builder.record_at(image.namespace, image.name.clone(), image.target, is_pinned(&image.labels));
        }
        builder
    }

    fn retold(&self, mut retelling: Retelling) -> Retelling {
        for image in &self.listing.images {
            retelling.record_at(image.namespace, image.name.clone(), image.target, is_pinned(&image.labels));
        }
        retelling
    }

    /// The records whose documents nobody has read yet.
    fn unread(&self, scope: &Scope) -> Vec<(Scope, Descriptor)> {
        let records = self.records();
        let unread = records
            .unknown()
            .into_iter()
            .map(|at| (Scope { namespace: records.get(at).namespace.to_owned(), ..scope.clone() }, self.target(at)));
        unread.collect()
    }

    /// The rows alone; copied if somebody else still needs them.
    fn into_listing(overview: Arc<Self>) -> Listing {
        match Arc::try_unwrap(overview) {
            Ok(overview) => overview.listing,
            Err(shared) => shared.listing.clone(),
        }
    }
}

impl Images {
    /// What the store is now.
    pub(crate) async fn overview(&self, scope: &Scope, depth: Depth) -> Result<Arc<Overview>> {
        let mut kept = self.inner.overview.lock().await;
        let (earlier, wanted) = (kept.take(), PlatformMatcher::only(self.platform()));
        let (version, is_new, mut overview) = self.blocking(move |store| follow(store, earlier, wanted, depth)).await?;
        if is_new {
            let learnt = self.learn(&overview.unread(scope)).await?;
            if !learnt.is_empty() {
                overview = self.blocking(move |_| Ok(with_learnt(overview, &learnt, depth))).await?;
            }
        }
        *kept = Some(Kept { version, overview: overview.clone() });
        Ok(overview)
    }
}

/// Brings an overview up to date; says of which version it is, and whether it is another one.
fn follow(
    store: &Store,
    earlier: Option<Kept>,
    wanted: PlatformMatcher,
    depth: Depth,
) -> Result<(i64, bool, Arc<Overview>)> {
    // Asked before anything is read: what is committed meanwhile makes the next call look again.
    let version = store.version()?;
    let usage = depth == Depth::Images;
    let (listing, made) = match earlier {
        Some(Kept { version: at, overview }) if at == version && (overview.listing.has_usage() || !usage) => {
            overview.prepare(depth);
            return Ok((version, false, overview));
        }
        Some(Kept { overview, .. }) => {
            let made = overview.made();
            (Overview::into_listing(overview), made)
        }
        None => (Listing::default(), None),
    };
    let listing = store.renew_listing(listing, usage)?;
    Ok((version, true, Arc::new(Overview::of(listing, wanted, depth, made))))
}

/// What was learnt need not be in the store, which perhaps may not be written.
fn with_learnt(overview: Arc<Overview>, learnt: &[(Digest, ManifestSummary)], depth: Depth) -> Arc<Overview> {
    let wanted = overview.wanted.clone();
    let mut listing = Overview::into_listing(overview);
    listing.learn(learnt);
    Arc::new(Overview::of(listing, wanted, depth, None))
}

fn numbered(manifest: &ListedManifest) -> NumberedManifest {
    let ListedManifest { size, image_id, config_size, platform, chain, layers, manifests } = manifest.clone();
    NumberedManifest { size, image_id, config_size, platform, chain, layers, manifests }
}
