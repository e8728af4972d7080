//! Mending trees: a fresh one is made from the layer, which is verified as it is unpacked, and takes the place of the damaged one.
//!
//! Never beneath a container: a mounted overlay must not have a layer changed under it. What stands on a damaged tree is named, and when
//! it is gone the tree is healed.

use std::collections::{BTreeMap, BTreeSet};

use orlop_content::{BlockingReader, Provider as _};
use orlop_metadata::{Damage, Damaged, Scope, Store, Tree};
use orlop_oci::{ChainId, DiffId, Digest, chain_ids};
use orlop_snapshot::apply::{self, Options};

use super::{End, Mending, RepairRequest, Repaired};
use crate::{Error, Images, Result, labels};

/// Layers that a tree may be made from.
struct Layers {
    diff_id: DiffId,
    /// They unpack to it, by what their labels say.
    blobs: Vec<Digest>,
}

/// Whether a layer gave the tree.
enum Tried {
    Healed,
    /// So many stand on it.
    Standing(Vec<String>),
    /// The layer is at fault.
    Refused(String),
}

impl Images {
    /// Compares trees, and mends those that differ, unless it is only planned; parents first, for a tree has what links of its layer
    /// name below, or all of it.
    pub(super) async fn repair_trees(
        &self,
        scope: &Scope,
        request: &RepairRequest,
        repaired: &mut Repaired,
    ) -> Result<()> {
        let mut left = BTreeSet::new();
        for tree in self.wanted_trees(scope, request).await? {
            let Some(mut mending) = self.examine_tree(&tree, request.plan, repaired).await? else { continue };
            mending.end = match request.plan {
                true => self.standing_on(&tree).await?.map_or(End::Planned, |standing| in_use(&standing)),
                false => self.heal(&tree, &left).await?,
            };
            if matches!(mending.end, End::Left { .. }) {
                left.insert(tree.id);
            }
            repaired.mendings.push(mending);
        }
        Ok(())
    }

    async fn wanted_trees(&self, scope: &Scope, request: &RepairRequest) -> Result<Vec<Tree>> {
        let mut reached = None;
        if let Some(text) = &request.name {
            let Some(record) = self.record_of(scope, text).await? else { return Ok(Vec::new()) };
            let namespace = scope.namespace.clone();
            reached = Some(self.blocking(move |store| Ok(store.reached_snapshots(&namespace, &record.name)?)).await?);
        }
        let (known, namespace) = (request.known, scope.namespace.clone());
        self.blocking(move |store| {
            let damaged: BTreeSet<Damaged> = match known {
                true => store.damages()?.into_iter().map(|damage| damage.what).collect(),
                false => BTreeSet::new(),
            };
            let mut trees = store.trees()?;
            trees.retain(|tree| {
                let here = |keys: &BTreeSet<(String, String)>| {
                    tree.namespace == namespace && keys.contains(&(tree.driver.clone(), tree.key.clone()))
                };
                (!known || damaged.contains(&tree.damaged())) && reached.as_ref().is_none_or(here)
            });
            Ok(parents_first(trees))
        })
        .await
    }

    /// Compares a tree, and remembers what is damaged, unless it is only planned.
    async fn examine_tree(&self, tree: &Tree, plan: bool, repaired: &mut Repaired) -> Result<Option<Mending>> {
        let comparison = self.compare_tree(tree, &()).await?;
        if let Some(comparison) = &comparison {
            repaired.trees += 1;
            repaired.tree_bytes += comparison.compared().bytes;
        }
        let tree = tree.clone();
        self.blocking(move |store| {
            let known = store.damage_of(&tree.damaged())?;
            let damage = match &comparison {
                // Nothing says any more what it was; that it was damaged is known.
                None => known,
                Some(comparison) if plan => comparison.compared().fault().map(|fault| Damage {
                    what: tree.damaged(),
                    fault: fault.to_owned(),
                    detail: comparison.compared().detail(),
                    quarantine: None,
                    found_at: jiff::Timestamp::now(),
                }),
                Some(comparison) => store.note_tree(&tree, comparison)?,
            };
            damage.map(|damage| mending(store, &tree, damage)).transpose()
        })
        .await
    }

    /// Makes a fresh tree and puts it in the place of the damaged one.
    async fn heal(&self, tree: &Tree, left: &BTreeSet<orlop_snapshot::SnapshotId>) -> Result<End> {
        if let Some(below) = tree.parents.iter().find(|below| left.contains(below)) {
            let reason = format!("what it stands on, {}/{}, is damaged still", tree.driver, below.0);
            return Ok(End::Left { reason, advice: "mend that first, as is said of it".to_owned() });
        }
        if let Some(standing) = self.standing_on(tree).await? {
            return Ok(in_use(&standing));
        }
        let wanted = tree.clone();
        let layers = self.blocking(move |store| layers(store, &wanted)).await?;
        let mut said = Vec::new();
        for blob in layers.iter().flat_map(|layers| &layers.blobs) {
            let Some(diff_id) = layers.as_ref().map(|layers| layers.diff_id.clone()) else { continue };
            match self.heal_from(tree, blob, diff_id).await? {
                Tried::Healed => return Ok(End::Mended { from: format!("layer {blob}") }),
                Tried::Standing(standing) => return Ok(in_use(&standing)),
                Tried::Refused(why) => said.push(format!("{blob}: {why}")),
            }
        }
        let reason = match said.is_empty() {
            true => "no layer in the store is known to unpack to it".to_owned(),
            false => format!("no layer gives it: {}", said.join("; ")),
        };
        let advice = "a pull or an import of an image that has it brings a missing layer, `orlop repair` mends a damaged one; \
                      or remove the image, once no container stands on it, and pull it again";
        Ok(End::Left { reason, advice: advice.to_owned() })
    }

    /// The keys of those who stand on a tree; `None` if nobody does.
    async fn standing_on(&self, tree: &Tree) -> Result<Option<Vec<String>>> {
        let tree = tree.clone();
        let standing = self
            .blocking(move |store| Ok(store.snapshots(&scope_of(&tree), &tree.driver)?.standing_on(&tree.key)?))
            .await?;
        Ok((!standing.is_empty()).then_some(standing))
    }

    async fn heal_from(&self, tree: &Tree, blob: &Digest, diff_id: DiffId) -> Result<Tried> {
        let scope = scope_of(tree);
        let reader = match self.store().content(&scope).open(blob).await {
            Ok(reader) => reader,
            Err(error @ (orlop_content::Error::NotFound { .. } | orlop_content::Error::Resized { .. })) => {
                return Ok(Tried::Refused(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let reader = BlockingReader::new(tokio::runtime::Handle::current(), reader, 0);
        let limits = self.settings().limits.layer.clone();
        let options = Options { squash_owners: !rustix::process::geteuid().is_root(), limits };
        let (tree, layer) = (tree.clone(), blob.clone());
        self.blocking(move |store| {
            let snapshots = store.snapshots(&scope, &tree.driver)?;
            let healing = snapshots.begin_healing(&tree.key)?;
            let target = snapshots.healing_target(&healing)?;
            let refused = match apply::apply(reader, &target, &options) {
                Ok(applied) if applied.diff_id == diff_id => None,
                Ok(applied) => Some(Ok(format!("it unpacks to {}, expected {diff_id}", applied.diff_id))),
                Err(error @ (orlop_snapshot::Error::Io { .. } | orlop_snapshot::Error::Unsupported { .. })) => {
                    Some(Err(error))
                }
                Err(error) => Some(Ok(error.to_string())),
            };
            match refused {
                None => match snapshots.end_healing(healing)? {
                    standing if standing.is_empty() => Ok(Tried::Healed),
                    standing => Ok(Tried::Standing(standing)),
                },
                Some(refused) => {
                    snapshots.abandon_healing(healing);
                    refused.map(Tried::Refused).map_err(|source| Error::Layer { layer, source })
                }
            }
        })
        .await
    }
}

fn scope_of(tree: &Tree) -> Scope {
    Scope::new(tree.namespace.clone(), "repair")
}

fn in_use(standing: &[String]) -> End {
    let reason = format!("it is in use, for these snapshots stand on it: {}", standing.join(" "));
    let advice = "nothing is changed beneath a container. Stop and remove the containers, or the snapshots, and repair again; a daemon \
                  does so by itself. Until then new containers of these images get the damaged files too";
    End::Left { reason, advice: advice.to_owned() }
}

fn mending(store: &Store, tree: &Tree, damage: Damage) -> Result<Mending> {
    let Damage { what, fault, detail, quarantine, .. } = damage;
    let sources = layers(store, tree)?.map(|layers| layers.blobs).unwrap_or_default();
    Ok(Mending {
        affected: store.affected(&what)?,
        subject: format!("{}/{}", tree.driver, tree.key),
        size: tree.bytes,
        sources: sources.iter().map(ToString::to_string).collect(),
        end: End::Planned,
        what,
        fault,
        detail,
        quarantine,
    })
}

/// Finds the layer of a tree: by the label that Orlop gives a snapshot, else by the one diff ID among those of the layers that are here
/// that gives the snapshot's chain ID, as other clients unpack.
fn layers(store: &Store, tree: &Tree) -> Result<Option<Layers>> {
    let scope = scope_of(tree);
    let mut by_diff: BTreeMap<String, Vec<Digest>> = BTreeMap::new();
    for info in store.content(&scope).find(&[])? {
        if let Some(diff) = info.labels.get(labels::UNCOMPRESSED) {
            by_diff.entry(diff.clone()).or_default().push(info.digest);
        }
    }
    let snapshot = store.snapshots(&scope, &tree.driver)?.stat(&tree.key)?;
    let known =
        snapshot.labels.get(labels::SNAPSHOT_DIFF).and_then(|diff| diff.parse::<Digest>().ok()).map(DiffId::new);
    let gives = |diff: &DiffId| chain_of(&snapshot.parent, diff).is_some_and(|chain| chain.to_string() == tree.key);
    let diff_id = known.or_else(|| {
        let mut diffs = by_diff.keys().filter_map(|diff| diff.parse::<Digest>().ok()).map(DiffId::new);
        diffs.find(gives)
    });
    Ok(diff_id.map(|diff_id| {
        let blobs = by_diff.remove(&diff_id.to_string()).unwrap_or_default();
        Layers { diff_id, blobs }
    }))
}

/// The chain ID of a layer on a parent that is called by its own.
fn chain_of(parent: &str, diff: &DiffId) -> Option<ChainId> {
    if parent.is_empty() {
        return chain_ids(std::slice::from_ref(diff)).pop();
    }
    let below = parent.parse::<Digest>().ok().map(DiffId::new)?;
    chain_ids(&[below, diff.clone()]).pop()
}

/// Orders trees so that each comes after those that it stands on.
fn parents_first(mut trees: Vec<Tree>) -> Vec<Tree> {
    trees.sort_by_key(|tree| (tree.parents.len(), tree.id));
    trees
}
