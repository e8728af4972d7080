//! Files that lost their content: a snapshot's files against what the tar of its layer says.
//!
//! A file counts that has content in the layer and none in the tree; one that is empty in the layer is as it should be. Only
//! trees whose form is known are looked at (overlayfs, native), read-only, and no symbolic link is followed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use orlop_graph::model::{Class, Facts, Finding, Mend, Model, Node, NodeId, NodeKind, Weight};
use orlop_lens::offline::{Root, Stored, places};
use orlop_oci::Digest;
use orlop_snapshot::apply::{self, Limits};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::Found;
use crate::commands::Context;
use crate::error::{Class as Failure, CliError, Result};
use crate::find::At;
use crate::look::words::{abbreviated, name};
use crate::output::count;

/// A snapshot, the layer that was unpacked there, and the target of an image that has both.
struct Unpacked {
    snapshot: NodeId,
    layer: PathBuf,
    tree: PathBuf,
    target: Digest,
}

/// Snapshots with files that are empty and should not be.
pub(super) async fn examine(context: &Context, model: &Model, facts: &Facts) -> Result<Vec<Found>> {
    let unknown =
        |why: &str| context.say(format!("unknown: whether files of snapshots have lost their content: {why}"));
    let root = match &context.store.at {
        At::Directory(root) => Some(root.clone()),
        At::Socket(_) => context.store.root.clone(),
    };
    let Some(root) = root.filter(|root| root.is_dir()) else {
        unknown("the store's files cannot be reached from here");
        return Ok(Vec::new());
    };
    let place = root.clone();
    let stored = match blocking(move || Root::open(&place).and_then(|root| root.read())).await? {
        Ok(stored) => stored,
        Err(error) => {
            unknown(&error.to_string());
            return Ok(Vec::new());
        }
    };
    let unpacked = unpacked(model, facts, &root, &stored);
    context.say(format!("comparing {} with their layers", count(unpacked.len() as u64, "snapshot")));
    let mut found = Vec::new();
    for one in unpacked {
        let (layer, tree) = (one.layer.clone(), one.tree.clone());
        match blocking(move || emptied(&layer, &tree)).await? {
            Ok(files) if files.is_empty() => {}
            Ok(files) => found.push(finding(model, &one, &files)),
            Err(why) => context.say(format!("unknown: {}: {why}", abbreviated(&name(model, one.snapshot)))),
        }
    }
    Ok(found)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let failed = |e| CliError::new(Failure::Failed, format!("a thread that reads files ended: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// Every snapshot whose layer and tree are known, once.
fn unpacked(model: &Model, facts: &Facts, root: &Path, stored: &Stored) -> Vec<Unpacked> {
    let mut all: BTreeMap<NodeId, Unpacked> = BTreeMap::new();
    let targets: BTreeSet<NodeId> = model.nodes(NodeKind::Record).filter_map(|record| model.target(record)).collect();
    for target in targets {
        let Node::Blob(named) = model.node(target) else { continue };
        let manifest = facts.hosts.get(&target).copied().unwrap_or(target);
        let snapshots = model.config(manifest).map(|config| model.snapshots_of(config)).unwrap_or_default();
        let layers = model.layers(manifest);
        if snapshots.len() != layers.len() {
            continue;
        }
        for (snapshot, layer) in snapshots.into_iter().zip(layers) {
            let Node::Blob(row) = model.node(layer) else { continue };
            let Some(tree) = tree(model, snapshot, stored) else { continue };
            let (layer, target) = (places::blob(root, &row.digest), named.digest.clone());
            all.entry(snapshot).or_insert(Unpacked { snapshot, layer, tree, target });
        }
    }
    all.into_values().collect()
}

/// Where a snapshot's files are.
fn tree(model: &Model, snapshot: NodeId, stored: &Stored) -> Option<PathBuf> {
    let Node::Snapshot(row) = model.node(snapshot) else { return None };
    let namespace = model.namespace(row.namespace);
    let at = stored.inventory.namespaces.iter().position(|n| *n.name == *namespace)?;
    let mut there = row.clone();
    there.namespace = at.try_into().ok()?;
    stored.tree(&there)
}

/// Files of a tree that are empty and have content in the layer.
fn emptied(layer: &Path, tree: &Path) -> Result<Vec<String>, String> {
    let file = File::open(layer).map_err(|e| format!("open {}: {e}", layer.display()))?;
    let mut lengths: HashMap<Vec<u8>, Option<u64>> = HashMap::new();
    let listed = apply::list(file, &Limits::default(), |path, length| {
        lengths.insert(path.to_owned(), length);
    });
    listed.map_err(|e| format!("its layer cannot be read: {e}"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(tree, flags, Mode::empty()).map_err(|e| format!("open {}: {e}", tree.display()))?;
    let is_emptied = |path: &[u8]| {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What is not there, or lies behind a link, is no file of this layer any more.
        let Ok(file) = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) else { return false };
        rustix::fs::fstat(&file).is_ok_and(|found| {
            rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::RegularFile
                && found.st_size == 0
        })
    };
    let with_content = lengths.iter().filter(|(_, length)| length.is_some_and(|length| length > 0));
    let mut files: Vec<String> = with_content
        .filter(|(path, _)| is_emptied(path))
        .map(|(path, _)| String::from_utf8_lossy(path).into_owned())
        .collect();
    files.sort();
    Ok(files)
}

fn finding(model: &Model, one: &Unpacked, files: &[String]) -> Found {
    let things = model.with_all_above(one.snapshot);
    let users: Vec<String> = things
        .iter()
        .flat_map(|snapshot| model.referrers(*snapshot))
        .filter(|edge| model.kind(edge.node) == NodeKind::Container)
        .map(|edge| abbreviated(&name(model, edge.node)))
        .collect();
    let mut detail = format!("{} without content, the first is {}", count(files.len() as u64, "file"), files[0]);
    let mend = if users.is_empty() { Mend::Remove(things.clone()) } else { Mend::Fetch };
    if let Some(user) = users.first() {
        detail = format!("{detail}; remove first what runs on it: container {user}");
        if users.len() > 1 {
            detail = format!("{detail} and {} more", users.len() - 1);
        }
    }
    let finding = Finding { class: Class::ZeroLength, subject: one.snapshot, things, frees: Weight::default(), mend };
    Found { finding, detail: Some(detail), target: Some(one.target.to_string()) }
}
