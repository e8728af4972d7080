//! Mending trees: a fresh one is made from the layer, which is verified as it is unpacked, and takes the place of the damaged one.
//!
//! Never beneath a container: a mounted overlay must not have a layer changed under it. What stands on a damaged tree is named, and when
//! it is gone the tree is healed.

use std::collections::BTreeSet;

use orlop_content::{BlockingReader, Provider as _};
use orlop_metadata::{Damage, Damaged, Scope, Store, Tree};
use orlop_oci::{DiffId, Digest};
use orlop_remote::Client;
use orlop_snapshot::SnapshotId;
use orlop_snapshot::apply::{self, Options};

use super::layers::{Layer, Layers, Named, Unpacks};
use super::{End, Mending, RepairRequest, Repaired, scope_of};
use crate::{Error, ErrorKind, Images, Result, Sink};

/// A tree that is not what it was.
pub(super) struct DamagedTree {
    tree: Tree,
    layers: Layers,
    pub(super) mending: Mending,
}

/// Whether a layer gave the tree.
enum Tried {
    /// By a layer of this diff ID.
    Healed(DiffId),
    /// So many stand on it.
    Standing(Vec<String>),
    /// The layer is at fault.
    Refused(String),
}

impl Images {
    /// Compares trees: those that differ, parents first, for a tree has what links of its layer name below, or all of it.
    pub(super) async fn damaged_trees(
        &self,
        scope: &Scope,
        request: &RepairRequest,
        repaired: &mut Repaired,
    ) -> Result<Vec<DamagedTree>> {
        let (mut damaged, mut named) = (Vec::new(), Named::default());
        for tree in self.wanted_trees(scope, request).await? {
            let Some(mut mending) = self.examine_tree(&tree, request.plan, repaired).await? else { continue };
            let layers = self.layers_of(&tree, &mut named).await?;
            mending.sources = layers.blobs.iter().map(|layer| layer.digest.to_string()).collect();
            if let Some(standing) = self.standing_on(&tree).await? {
                mending.end = in_use(&standing);
            }
            damaged.push(DamagedTree { tree, layers, mending });
        }
        Ok(damaged)
    }

    /// Mends trees; without a `client`, from what is here.
    pub(super) async fn heal_trees(
        &self,
        client: Option<&Client>,
        damaged: Vec<DamagedTree>,
        repaired: &mut Repaired,
        sink: Sink<'_>,
    ) -> Result<()> {
        let mut left = BTreeSet::new();
        for DamagedTree { tree, layers, mut mending } in damaged {
            mending.end = self.heal(&tree, &layers, &left, client, repaired, sink).await?;
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
    async fn heal(
        &self,
        tree: &Tree,
        layers: &Layers,
        left: &BTreeSet<SnapshotId>,
        client: Option<&Client>,
        repaired: &mut Repaired,
        sink: Sink<'_>,
    ) -> Result<End> {
        if let Some(below) = tree.parents.iter().find(|below| left.contains(below)) {
            let reason = format!("what it stands on, {}/{}, is damaged still", tree.driver, below.0);
            return Ok(End::Left { reason, advice: "mend that first, as is said of it".to_owned() });
        }
        if let Some(standing) = self.standing_on(tree).await? {
            return Ok(in_use(&standing));
        }
        // What is brought is held until the tree is healed.
        self.under_lease(&scope_of(tree), async |scope| {
            let mut said = Vec::new();
            for layer in &layers.blobs {
                let (tried, from) =
                    self.heal_with(&scope, tree, layer, &layers.unpacks, client, repaired, sink).await?;
                match tried {
                    Tried::Healed(diff) => {
                        self.label_layer(&scope, &layer.digest, &diff).await?;
                        return Ok(End::Mended { from });
                    }
                    Tried::Standing(standing) => return Ok(in_use(&standing)),
                    Tried::Refused(why) => said.push(format!("{}: {why}", layer.digest)),
                }
            }
            Ok(no_layer(&said))
        })
        .await
    }

    /// Tries a layer; one that is lost or damaged is brought, and tried again. Says where it came from.
    #[allow(clippy::too_many_arguments, reason = "each is a thing of its own")]
    async fn heal_with(
        &self,
        scope: &Scope,
        tree: &Tree,
        layer: &Layer,
        unpacks: &Unpacks,
        client: Option<&Client>,
        repaired: &mut Repaired,
        sink: Sink<'_>,
    ) -> Result<(Tried, String)> {
        let from = format!("layer {}", layer.digest);
        let tried = self.heal_from(scope, tree, &layer.digest, unpacks).await?;
        let Tried::Refused(why) = tried else { return Ok((tried, from)) };
        match self.bring_layer(scope, tree, layer, client, repaired, sink).await? {
            Some(End::Mended { from: whom }) => {
                let tried = self.heal_from(scope, tree, &layer.digest, unpacks).await?;
                Ok((tried, format!("{from}, brought from {whom}")))
            }
            Some(End::Left { reason, .. }) => Ok((Tried::Refused(format!("{why}; {reason}")), from)),
            Some(End::Planned) | None => Ok((Tried::Refused(why), from)),
        }
    }

    /// The keys of those who stand on a tree; `None` if nobody does.
    async fn standing_on(&self, tree: &Tree) -> Result<Option<Vec<String>>> {
        let tree = tree.clone();
        let standing = self
            .blocking(move |store| Ok(store.snapshots(&scope_of(&tree), &tree.driver)?.standing_on(&tree.key)?))
            .await?;
        Ok((!standing.is_empty()).then_some(standing))
    }

    async fn heal_from(&self, scope: &Scope, tree: &Tree, blob: &Digest, unpacks: &Unpacks) -> Result<Tried> {
        let reader = match self.store().content(scope).open(blob).await {
            Ok(reader) => reader,
            Err(error @ (orlop_content::Error::NotFound { .. } | orlop_content::Error::Resized { .. })) => {
                return Ok(Tried::Refused(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let handle = tokio::runtime::Handle::current();
        let options = self.apply_options();
        let (scope, tree, layer, unpacks) = (scope.clone(), tree.clone(), blob.clone(), unpacks.clone());
        self.blocking(move |store| {
            let mut asking = store.asking(0);
            loop {
                let reader = BlockingReader::new(handle.clone(), reader.clone(), 0);
                match healed(store, &scope, &tree, (&layer, &unpacks), reader, &options) {
                    // A fresh tree again, from the layer's start.
                    Err(error) if error.kind() == ErrorKind::NoSpace && store.make_room(&mut asking) => {}
                    other => return other,
                }
            }
        })
        .await
    }
}

/// No layer gave the tree, and what was said of each.
fn no_layer(said: &[String]) -> End {
    let reason = match said.is_empty() {
        true => "no layer is known to unpack to it".to_owned(),
        false => format!("no layer gives it: {}", said.join("; ")),
    };
    let advice = "`orlop repair --from ARCHIVE` takes the layer from an archive of an image that has it, and a pull of such an image \
                  brings a missing layer; or remove the image, once no container stands on it, and pull it again";
    End::Left { reason, advice: advice.to_owned() }
}

/// Unpacks a layer to a fresh tree, and lets that take the place of the damaged one.
fn healed(
    store: &Store,
    scope: &Scope,
    tree: &Tree,
    (layer, unpacks): (&Digest, &Unpacks),
    reader: BlockingReader,
    options: &Options,
) -> Result<Tried> {
    let snapshots = store.snapshots(scope, &tree.driver)?;
    let healing = snapshots.begin_healing(&tree.key)?;
    let target = snapshots.healing_target(&healing)?;
    let given = match apply::apply(reader, &target, options) {
        Ok(applied) if unpacks.is(&applied.diff_id) => Ok(applied.diff_id),
        Ok(applied) => Err(Ok(format!("it unpacks to {}, which is not this tree's", applied.diff_id))),
        Err(error @ (orlop_snapshot::Error::Io { .. } | orlop_snapshot::Error::Unsupported { .. })) => Err(Err(error)),
        Err(error) => Err(Ok(error.to_string())),
    };
    match given {
        Ok(diff) => match snapshots.end_healing(healing)? {
            standing if standing.is_empty() => Ok(Tried::Healed(diff)),
            standing => Ok(Tried::Standing(standing)),
        },
        Err(refused) => {
            snapshots.abandon_healing(healing);
            refused.map(Tried::Refused).map_err(|source| Error::Layer { layer: layer.clone(), source })
        }
    }
}

fn in_use(standing: &[String]) -> End {
    let reason = format!("it is in use, for these snapshots stand on it: {}", standing.join(" "));
    let advice = "nothing is changed beneath a container. Stop and remove the containers, or the snapshots, and repair again; a daemon \
                  does so by itself. Until then new containers of these images get the damaged files too";
    End::Left { reason, advice: advice.to_owned() }
}

fn mending(store: &Store, tree: &Tree, damage: Damage) -> Result<Mending> {
    let Damage { what, fault, detail, quarantine, .. } = damage;
    Ok(Mending {
        affected: store.affected(&what)?,
        subject: format!("{}/{}", tree.driver, tree.key),
        size: tree.bytes,
        sources: Vec::new(),
        end: End::Planned,
        what,
        fault,
        detail,
        quarantine,
    })
}

/// Orders trees so that each comes after those that it stands on.
fn parents_first(mut trees: Vec<Tree>) -> Vec<Tree> {
    trees.sort_by_key(|tree| (tree.parents.len(), tree.id));
    trees
}
