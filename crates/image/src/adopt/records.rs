//! What names things: records, of which each has its whole image, and leases; and for whom snapshots wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use orlop_graph::model::{LeaseRow, RecordRow, Resource as Listed};
use orlop_metadata::{self as metadata, ImageChange, Labels, Resource, ResourceKind, Scope, Store};
use orlop_oci::{Descriptor, Digest, PlatformMatcher};

use super::choose::{Blob, Job, taken};
use super::{ADOPTED, Adoption, DRIVER, Foreign, WAITING};
use crate::beneath::handed;
use crate::import::required;
use crate::pull::{Naming, Nowhere, Stored, document_labels};
use crate::walk::{self, Node, Select, Tree};
use crate::{Error, Images, Result, gate, labels};

/// An image of which everything is here that this platform needs, with the records that may name it.
pub(super) struct Whole {
    tree: Tree,
    records: Vec<(RecordRow, String)>,
}

impl Whole {
    /// The records as they are there, and by what their coming in was verified.
    fn changes(&self) -> impl Iterator<Item = ImageChange> {
        self.records.iter().map(|(record, verified)| {
            let mut labels = taken(&record.labels);
            labels.insert(labels::VERIFIED.to_owned(), verified.clone());
            ImageChange::Upsert { name: record.name.to_string(), target: self.tree.target.clone(), labels }
        })
    }
}

/// Which layer unpacks to a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    diff_id: String,
}

/// The layers of all snapshots, by chain ID.
#[derive(Debug, Clone, Default)]
pub(super) struct Layers(Arc<HashMap<String, Layer>>);

impl Layers {
    pub(super) fn of(images: &[Whole]) -> Self {
        let mut all = HashMap::new();
        for node in images.iter().flat_map(|whole| whole.tree.manifests()) {
            let (Some(image), Some(manifest)) = (&node.image, node.document.manifest()) else { continue };
            for ((chain, diff_id), layer) in image.chain.iter().zip(&image.diff_ids).zip(&manifest.layers) {
                let layer = Layer { digest: layer.digest.clone(), diff_id: diff_id.to_string() };
                all.entry(chain.to_string()).or_insert(layer);
            }
        }
        Self(Arc::new(all))
    }

    pub(super) fn of_chain(&self, chain: &str) -> Option<&Layer> {
        self.0.get(chain)
    }

    /// The labels that a snapshot has when it is unpacked here.
    pub(super) fn labels(&self, chain: &str, parent: &str) -> Labels {
        let Some(layer) = self.of_chain(chain) else { return Labels::new() };
        let mut all = Labels::from([
            (labels::SNAPSHOT_REF.to_owned(), chain.to_owned()),
            (labels::SNAPSHOT_DIFF.to_owned(), layer.diff_id.clone()),
        ]);
        if !parent.is_empty() {
            all.insert(labels::SNAPSHOT_PARENT.to_owned(), parent.to_owned());
        }
        all
    }
}

/// What of it is to be written: records that are not here or are the same, with what goes with them. Counts, and says what is left.
fn missing(
    store: &Store,
    namespace: &str,
    wanted: Vec<ImageChange>,
    derived: Vec<ImageChange>,
    counted: &mut Adoption,
) -> Result<Vec<ImageChange>> {
    let mut changes = Vec::new();
    for change in wanted {
        let ImageChange::Upsert { name, target, .. } = &change else { continue };
        match store.image(namespace, name) {
            Ok(image) if image.target.digest == target.digest => counted.records_present += 1,
            Ok(image) => {
                counted.leave(name.clone(), format!("here it points at {}, and goes on to", image.target.digest));
                continue;
            }
            Err(metadata::Error::NotFound { .. }) => counted.records.push(name.clone()),
            Err(error) => return Err(error.into()),
        }
        changes.push(change);
    }
    let mut named: HashSet<String> = changes.iter().map(|change| change.name().to_owned()).collect();
    for change in derived {
        if store.image(namespace, change.name()).is_err() && named.insert(change.name().to_owned()) {
            changes.push(change);
        }
    }
    Ok(changes)
}

impl Images {
    /// Images of records that may come in: whole, and let in by the gate under that name. Of the others it is said what is missing.
    pub(super) async fn whole_images(
        &self,
        scope: &Scope,
        records: &[RecordRow],
        done: &mut Adoption,
    ) -> Result<Vec<Whole>> {
        let mut by_target: BTreeMap<&Digest, Vec<&RecordRow>> = BTreeMap::new();
        for record in records {
            by_target.entry(&record.target).or_default().push(record);
        }
        let content = self.store().content(scope);
        let known = content.clone();
        let here: BTreeSet<Digest> = self.blocking(move |_| Ok(known.sizes()?.into_keys().collect())).await?;
        let session = self.session(scope.clone(), &Nowhere, &|_| {});
        let mut images = Vec::new();
        for (target, records) in by_target {
            let first = records[0];
            let target = Descriptor::new(first.media_type.to_string(), target.clone(), first.size);
            let walked = walk::walk(&Stored(content.clone()), &first.name, &target, &Select::Present).await;
            let whole = walked.map_err(|error| error.to_string()).and_then(|tree| match self.lacks(&tree, &here) {
                None => Ok(tree),
                Some(why) => Err(why),
            });
            let tree = match whole {
                Ok(tree) => tree,
                Err(why) => {
                    records.iter().for_each(|record| done.leave(record.name.to_string(), why.clone()));
                    continue;
                }
            };
            let mut admitted = Vec::new();
            for record in records {
                match session.admit(&record.name, &target, &[]).await {
                    Ok(by) => admitted.push((record.clone(), gate::label(&target.digest, &by))),
                    Err(Error::Refused(refusal)) => done.leave(record.name.to_string(), refusal.to_string()),
                    Err(error) => return Err(error),
                }
            }
            if !admitted.is_empty() {
                images.push(Whole { tree, records: admitted });
            }
        }
        let vouched: Vec<(Digest, Labels)> = session.vouched.labels().into_iter().collect();
        self.blocking(move |_| Ok(content.label_all(&vouched)?)).await?;
        Ok(images)
    }

    /// What an image lacks that this platform needs; of other platforms it may lack anything.
    fn lacks(&self, tree: &Tree, here: &BTreeSet<Digest>) -> Option<String> {
        let host = PlatformMatcher::only(self.platform());
        let mut missing: Vec<String> = required(tree, &host).iter().map(ToString::to_string).collect();
        let needed = |node: &&Node| node.image.as_ref().is_none_or(|image| host.matches(&image.platform));
        for node in tree.manifests().filter(needed) {
            let Some(manifest) = node.document.manifest() else { continue };
            let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
            let absent = blobs.filter(|blob| !here.contains(&blob.digest));
            missing.extend(absent.map(|blob| format!("{} {}", walk::kind_word(blob), blob.digest)));
        }
        missing.sort();
        missing.dedup();
        (!missing.is_empty()).then(|| format!("it is incomplete there: missing {}", missing.join(", ")))
    }

    /// Writes the records of images, as they are there; one that points elsewhere here stays.
    pub(super) async fn take_records(&self, scope: &Scope, images: &[Whole], done: &mut Adoption) -> Result<()> {
        let wanted: Vec<ImageChange> = images.iter().flat_map(Whole::changes).collect();
        let derived = self.derived(scope, images);
        let mut document = BTreeMap::<Digest, Labels>::new();
        for node in images.iter().flat_map(|whole| &whole.tree.nodes) {
            let digest = node.descriptor.digest.clone();
            document.entry(digest).or_default().extend(document_labels(&node.document));
        }
        let summaries: Vec<_> = images.iter().flat_map(|whole| whole.tree.summaries()).collect();
        let (content, scope) = (self.store().content(scope), scope.clone());
        let counted = self.blocking(move |store| {
            content.label_all(&document.into_iter().collect::<Vec<_>>())?;
            store.put_summaries(&summaries)?;
            let mut counted = Adoption::default();
            let changes = missing(store, &scope.namespace, wanted, derived, &mut counted)?;
            store.write_images(&scope, &changes)?;
            Ok(counted)
        });
        let counted = counted.await?;
        done.records.extend(counted.records);
        done.records_present += counted.records_present;
        done.left.extend(counted.left);
        Ok(())
    }

    /// The hash references that go with names: with them, not after them, since a kill comes between two transactions.
    fn derived(&self, scope: &Scope, images: &[Whole]) -> Vec<ImageChange> {
        let mut derived = Vec::new();
        if !self.settings().is_cri(&scope.namespace) {
            return derived;
        }
        for whole in images {
            let image = whole.tree.image_for(self.platform()).and_then(|node| node.image.as_ref());
            let Some(image) = image else { continue };
            for (record, _) in &whole.records {
                let all = Naming::new(&record.name).changes(&whole.tree.target, Some(&image.id));
                derived.extend(all.into_iter().filter(|change| change.name() != &*record.name));
            }
        }
        derived
    }

    /// Takes leases over, with what they list.
    pub(super) async fn take_leases(&self, scope: &Scope, leases: Vec<LeaseRow>, done: &mut Adoption) -> Result<()> {
        let namespace = scope.namespace.clone();
        let counted = self
            .blocking(move |store| {
                let mut counted = Adoption::default();
                for lease in leases {
                    match store.create_lease(&namespace, &lease.id, taken(&lease.labels)) {
                        Ok(_) => counted.leases += 1,
                        Err(metadata::Error::AlreadyExists { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                    let listed: Vec<Resource> = lease.resources.iter().filter_map(resource).collect();
                    match store.add_resources(&namespace, &lease.id, &listed) {
                        // Of a kind or with a name that no client could add.
                        Err(metadata::Error::Invalid { reason, .. }) => counted.leave(lease.id.to_string(), reason),
                        added => added?,
                    }
                }
                Ok(counted)
            })
            .await?;
        done.leases += counted.leases;
        done.left.extend(counted.left);
        Ok(())
    }

    /// Takes over what a containerd above will ask for, and has it wait.
    pub(super) async fn wait_for_owner(
        &self,
        scope: &Scope,
        foreign: &Arc<dyn Foreign>,
        name: &str,
        images: &[Whole],
        all: Job,
        done: &mut Adoption,
    ) -> Result<()> {
        let (kept, blobs) = kept(images, &all);
        let (known, unknown): (Vec<_>, Vec<_>) =
            all.snapshots.into_iter().partition(|tree| kept.contains_key(&tree.key));
        if !unknown.is_empty() {
            done.leave(
                format!("{} committed snapshots", unknown.len()),
                "no image that was taken over says what they unpack",
            );
        }
        let mark = (ADOPTED.to_owned(), name.to_owned());
        let trees: Vec<_> = known
            .into_iter()
            .map(|mut tree| {
                tree.labels = kept[&tree.key].clone();
                tree.labels.extend([mark.clone()]);
                tree
            })
            .collect();
        let keys: Vec<String> = trees.iter().map(|tree| tree.key.clone()).collect();
        let layers = Layers::of(images);
        let mut with_blobs = Adoption::default();
        self.under_lease(scope, async |scope| {
            self.take_blobs(&scope, foreign, &blobs, &mut with_blobs).await?;
            self.take_trees(&scope, foreign, trees, &layers, done).await?;
            self.hold_waiting(&scope.namespace, keys).await
        })
        .await?;
        // Of blobs that are in both namespaces once is enough.
        done.left.extend(with_blobs.left);
        Ok(())
    }

    /// Holds what nobody was handed yet.
    async fn hold_waiting(&self, namespace: &str, keys: Vec<String>) -> Result<()> {
        let scope = Scope::new(namespace, super::ACTOR);
        self.blocking(move |store| {
            let snapshots = store.snapshots(&scope, DRIVER)?;
            let mut waiting = Vec::new();
            for key in keys {
                match snapshots.stat(&key) {
                    Ok(info) if info.labels.contains_key(ADOPTED) => {
                        waiting.push(Resource { kind: ResourceKind::Snapshots(DRIVER.to_owned()), name: key });
                    }
                    Ok(_) | Err(metadata::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            match store.create_lease(&scope.namespace, WAITING, Labels::new()) {
                Ok(_) | Err(metadata::Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(store.add_resources(&scope.namespace, WAITING, &waiting)?)
        })
        .await
    }
}

/// What each snapshot keeps, by chain ID, and the blobs that are kept so.
fn kept(images: &[Whole], all: &Job) -> (BTreeMap<String, Labels>, Vec<Blob>) {
    let trees: BTreeSet<&str> = all.snapshots.iter().map(|tree| tree.key.as_str()).collect();
    let sizes: HashMap<&Digest, u64> = all.blobs.iter().map(|blob| (&blob.digest, blob.size)).collect();
    let mut kept = BTreeMap::<String, Labels>::new();
    let mut blobs = BTreeMap::<Digest, Labels>::new();
    for whole in images {
        for node in whole.tree.manifests() {
            let (Some(image), Some(manifest)) = (&node.image, node.document.manifest()) else { continue };
            let layers = handed(&whole.tree, &node.descriptor.digest);
            if !layers.iter().any(|layer| trees.contains(layer.chain.as_str())) {
                continue;
            }
            for layer in layers {
                kept.entry(layer.chain).or_default().extend(layer.labels);
            }
            let of_document = document_labels(&node.document);
            blobs.entry(node.descriptor.digest.clone()).or_default().extend(of_document);
            blobs.entry(manifest.config.digest.clone()).or_default();
            for (layer, diff_id) in manifest.layers.iter().zip(&image.diff_ids) {
                let label = (labels::UNCOMPRESSED.to_owned(), diff_id.to_string());
                blobs.entry(layer.digest.clone()).or_default().extend([label]);
            }
        }
    }
    let there = blobs.into_iter().filter_map(|(digest, labels)| {
        let size = *sizes.get(&digest)?;
        Some(Blob { digest, size, labels })
    });
    (kept, there.collect())
}

/// What a lease lists, if it is of a kind that is known here.
fn resource(listed: &Listed) -> Option<Resource> {
    let (kind, name) = match listed {
        Listed::Content(digest) => (ResourceKind::Content, digest.to_string()),
        Listed::Image(name) => (ResourceKind::Images, name.to_string()),
        Listed::Snapshot { snapshotter, key } => (ResourceKind::Snapshots(snapshotter.to_string()), key.to_string()),
        _ => return None,
    };
    Some(Resource { kind, name })
}
