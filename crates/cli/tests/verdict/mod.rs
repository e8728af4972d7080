//! What a store shows, and whether it may show that: the judge of every test that cuts, kills or lets the disk fail.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod crowd;
pub(crate) mod images;
pub(crate) mod scratch;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use orlop_content::{LocalStore, Manager as _};
use orlop_image::{CheckRequest, GcRequest, Images, Settings};
use orlop_metadata::{OpenOptions, Scope, SnapshotKind, Store};
use orlop_oci::Digest;
use orlop_snapshot::{Driver, ErofsDriver, NativeDriver, OverlayDriver};
use orlop_testkit::fingerprint::{Fingerprint, Options};

/// What is visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Targets of records, by namespace and name.
    records: BTreeMap<String, String>,
    /// Trees of snapshots, by namespace, driver and key; without those that are just being filled.
    trees: BTreeMap<String, Fingerprint>,
}

/// A command on a root, in the namespace that is judged.
pub(crate) fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = crate::common::binary();
    command.arg("--root").arg(root).args(["--namespace", "k8s.io", "-q"]).args(args);
    command
}

/// Opens the store at `root`, and checks all of it.
pub(crate) fn look(root: &Path) -> Result<Seen, String> {
    runtime().block_on(seen(&open(root)?))
}

/// Judges a store in which everything of `before` was answered, and a command was under way that leads to `after`; then
/// collects in it, and judges again. Says what is visible.
pub(crate) fn judge(root: &Path, before: &Seen, after: &Seen) -> Result<Seen, String> {
    runtime().block_on(async {
        let images = open(root)?;
        compare(&seen(&images).await?, before, after)?;
        let request = GcRequest { full: true, ..GcRequest::default() };
        images.gc(&scope(), request).await.map_err(|e| format!("a collection fails: {e}"))?;
        let found = seen(&images).await?;
        compare(&found, before, after).map_err(|found| format!("after a collection: {found}"))?;
        Ok(found)
    })
}

/// Opens the store at `root`, checks all of it, collects, and checks again. Says what is visible.
pub(crate) fn collected(root: &Path) -> Result<Seen, String> {
    runtime().block_on(async {
        let images = open(root)?;
        let first = seen(&images).await?;
        let request = GcRequest { full: true, ..GcRequest::default() };
        images.gc(&scope(), request).await.map_err(|e| format!("a collection fails: {e}"))?;
        seen(&images).await.map_err(|found| format!("after a collection: {found}"))?;
        Ok(first)
    })
}

impl Seen {
    /// Targets of records, by namespace and name.
    pub(crate) fn records(&self) -> &BTreeMap<String, String> {
        &self.records
    }

    /// Namespace, driver and key of each snapshot.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &String> {
        self.trees.keys()
    }

    /// Whether every tree is one that `last` has, and as it has it.
    pub(crate) fn has_trees_of(&self, last: &Self) -> Result<(), String> {
        for (key, tree) in &self.trees {
            match last.trees.get(key).map(|expected| expected.diff(tree)) {
                None => return Err(format!("snapshot {key} is visible, and nobody was to make it")),
                Some(differences) if differences.is_empty() => {}
                Some(differences) => {
                    return Err(format!("the tree of snapshot {key} is broken:\n{}", differences.join("\n")));
                }
            }
        }
        Ok(())
    }

    /// Whether the records are the same.
    pub(crate) fn is_named_like(&self, other: &Self) -> bool {
        self.records == other.records
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

pub(crate) fn scope() -> Scope {
    Scope::new("k8s.io", "judge")
}

pub(crate) fn open(root: &Path) -> Result<Images, String> {
    Store::check_root(root).map_err(|e| format!("the root is refused: {e}"))?;
    let told = |e: &dyn std::error::Error| format!("the store does not open: {e}");
    let content = Arc::new(LocalStore::open(root.join("content")).map_err(|e| told(&e))?);
    let drivers: Vec<Arc<dyn Driver>> = vec![
        Arc::new(OverlayDriver::open(root.join("snapshots/overlayfs")).map_err(|e| told(&e))?),
        Arc::new(NativeDriver::open(root.join("snapshots/native")).map_err(|e| told(&e))?),
        Arc::new(ErofsDriver::open(root.join("snapshots/erofs")).map_err(|e| told(&e))?),
    ];
    let store = Store::open(root, OpenOptions { content, drivers, read_only: false }).map_err(|e| told(&e))?;
    Ok(Images::new(store, Settings::default()))
}

async fn seen(images: &Images) -> Result<Seen, String> {
    let request = CheckRequest { deep: true, name: None };
    let problems = images.check(&scope(), &request).await.map_err(|e| format!("check fails: {e}"))?;
    if !problems.is_empty() {
        return Err(format!("check finds {problems:#?}"));
    }
    verified(images.store()).await?;
    let records = records(images.store()).map_err(|e| format!("the records cannot be read: {e}"))?;
    let trees = trees(images.store()).map_err(|e| format!("the trees cannot be read: {e}"))?;
    Ok(Seen { records, trees })
}

/// Every file under a digest's name has its bytes, whether a row knows of it or not: a writer that finds one takes it for the
/// blob.
async fn verified(store: &Store) -> Result<(), String> {
    let blobs = store.root().join("content/blobs");
    for info in LocalStore::open(store.root().join("content"))
        .map_err(|e| e.to_string())?
        .list()
        .await
        .map_err(|e| e.to_string())?
    {
        let path = blobs.join(info.digest.algorithm().as_str()).join(info.digest.hex());
        let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let found = Digest::of(&bytes);
        if found != info.digest {
            return Err(format!("{} has the bytes of {found}", path.display()));
        }
    }
    Ok(())
}

fn records(store: &Store) -> orlop_metadata::Result<BTreeMap<String, String>> {
    let mut records = BTreeMap::new();
    for namespace in store.namespaces()? {
        for image in store.images(&namespace.name, &[])? {
            records.insert(format!("{}/{}", namespace.name, image.name), image.target.digest.to_string());
        }
    }
    Ok(records)
}

fn trees(store: &Store) -> Result<BTreeMap<String, Fingerprint>, Box<dyn std::error::Error>> {
    let mut trees = BTreeMap::new();
    // Their own directory's time is nobody's.
    let options = Options { skip_root: true, ..Options::default() };
    for namespace in store.namespaces()? {
        for driver in store.drivers() {
            let scope = Scope::new(namespace.name.clone(), "judge");
            for (id, info) in store.snapshots(&scope, driver.name())?.ids()? {
                // A layer that is unpacked has a key of its own each time, and nobody else's.
                if info.kind == SnapshotKind::Committed || !info.name.starts_with("extract-") {
                    let key = format!("{}/{}/{}", namespace.name, driver.name(), info.name);
                    let home = driver.root().join(id.0.to_string());
                    if driver.name() == "erofs" && info.kind == SnapshotKind::Committed {
                        // Two images are the same only if their bytes are.
                        let image = Digest::of(&std::fs::read(home.join("layer.erofs"))?).to_string();
                        trees.insert(key, Fingerprint { lines: [("layer.erofs".to_owned(), image)].into() });
                        continue;
                    }
                    let tree = home.join("fs");
                    let top = std::fs::metadata(&tree)?;
                    let mut tree = Fingerprint::of(&tree, &options)?;
                    for line in tree.lines.values_mut().filter(|line| line.starts_with("char")) {
                        // Of what hides a file nobody says a time.
                        *line =
                            line.split(' ').filter(|word| !word.starts_with("mtime=")).collect::<Vec<_>>().join(" ");
                    }
                    let owner = format!("dir mode={:o} owner={}:{}", top.mode(), top.uid(), top.gid());
                    tree.lines.insert(".".to_owned(), owner);
                    trees.insert(key, tree);
                }
            }
        }
    }
    Ok(trees)
}

fn compare(found: &Seen, before: &Seen, after: &Seen) -> Result<(), String> {
    let names: BTreeSet<&String> = [found, before, after].iter().flat_map(|seen| seen.records.keys()).collect();
    for name in names {
        let [found, before, after] = [found, before, after].map(|seen| seen.records.get(name));
        if found != before && found != after {
            return Err(format!("record {name} is {found:?}: it was {before:?} and was to be {after:?}"));
        }
    }
    for (key, tree) in &found.trees {
        let expected = [before, after].into_iter().filter_map(|seen| seen.trees.get(key));
        let differences: Vec<Vec<String>> = expected.map(|expected| expected.diff(tree)).collect();
        if differences.is_empty() {
            return Err(format!("snapshot {key} is visible, and nobody was to make it"));
        }
        if differences.iter().all(|differences| !differences.is_empty()) {
            return Err(format!("the tree of snapshot {key} is broken:\n{}", differences.concat().join("\n")));
        }
    }
    match before.trees.keys().find(|key| after.trees.contains_key(*key) && !found.trees.contains_key(*key)) {
        Some(lost) => Err(format!("snapshot {lost} is lost")),
        None => Ok(()),
    }
}
