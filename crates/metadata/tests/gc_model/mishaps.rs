//! What happens to a root against everybody's will: a process dies in the middle of an operation, a disk changes a blob.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use jiff::Timestamp;
use orlop_content::{IngestManager as _, LocalStore};
use orlop_metadata::{OpenOptions, Store};

use crate::fuse::{Fuse, FusedContent, FusedDriver};
use crate::model::{Object, Space, object};
use crate::ops::*;
use crate::rig::{DRIVER, PlainDriver, Rig, digest};
use crate::world::{COMMITS, World};

impl World {
    pub fn new() -> Self {
        let mut rig = Rig::new();
        let fuse = Fuse::default();
        rig.store = open(&rig, &fuse);
        Self {
            rig,
            fuse,
            spaces: Default::default(),
            pulls: BTreeMap::new(),
            aside: BTreeSet::new(),
            unmade: Vec::new(),
        }
    }

    pub fn reopen(&mut self) {
        self.rig.store = open(&self.rig, &self.fuse);
    }

    /// The process dies at a step of `op`, and another one opens the root.
    ///
    /// What neither the operation takes nor is garbage is there; nothing is there that was not, but what the operation makes.
    pub fn crash(&mut self, space: usize, steps: u8, op: &Op) {
        let before = self.spaces.clone();
        self.fuse.set(steps);
        let ended = catch_unwind(AssertUnwindSafe(|| self.apply(space, op)));
        if !self.fuse.take() {
            // It came to its end before.
            return ended.unwrap_or_else(|failure| resume_unwind(failure));
        }
        self.reopen();
        match op {
            Op::Rot { blob, .. } => self.scrub(*blob),
            // The client gives up what it could go on with.
            Op::Commit { .. } => COMMITS.iter().for_each(|reference| self.abort(space, reference)),
            Op::Abort { reference } => self.abort(space, &write_name(*reference)),
            // Its tree may still be in the making, for all that others know.
            Op::Prepare { .. } => self.unmade.push(self.rig.seconds() + 3600),
            _ => {}
        }
        let now = self.rig.seconds();
        let mut must = before.clone();
        take(&mut must[space], op);
        for (at, must) in must.iter_mut().enumerate() {
            must.sweep(now);
            let (had, is) = (objects(&before[at]), self.actual(at, &before[at]));
            let lost: Vec<_> = objects(must).difference(&objects(&is)).cloned().collect();
            assert!(lost.is_empty(), "lost by a crash in {op:?}: {lost:?}");
            if !matches!(op, Op::Undo) {
                let new: BTreeSet<_> = objects(&is).difference(&had).cloned().collect();
                let made = if at == space { makes(op) } else { BTreeSet::new() };
                assert!(new.is_subset(&made), "from nowhere after a crash in {op:?}: {new:?}");
            }
            self.spaces[at] = is;
            if let (Op::Abort { reference }, true) = (op, at == space) {
                self.spaces[at].writes.remove(&write_name(*reference));
            }
        }
        // Whoever is interrupted in an undo says it again.
        if matches!(op, Op::Undo) {
            self.apply(space, op);
        }
        // Bytes without a row are looked for by a full collection only.
        self.apply(space, &Op::CollectFull);
        assert_eq!(self.rig.store.check_metadata().expect("a check"), []);
    }

    fn abort(&self, space: usize, reference: &str) {
        let content = self.rig.store.content(&self.rig.scope(NAMESPACES[space], None));
        match self.rig.runtime.block_on(content.abort(reference)) {
            Ok(()) | Err(orlop_content::Error::NotFound { .. }) => {}
            Err(error) => panic!("{reference}: {error}"),
        }
    }

    /// What a namespace has, but for writes and containers, which an interrupted operation leaves alone.
    fn actual(&self, at: usize, before: &Space) -> Space {
        let (store, namespace) = (&self.rig.store, NAMESPACES[at]);
        let scope = self.rig.scope(namespace, None);
        let images = store.images(namespace, &[]).expect("a list").into_iter();
        let blobs = store.content(&scope).find(&[]).expect("a list").into_iter();
        let snapshots = self.rig.snapshots(namespace, None).list(&[]).expect("a list").into_iter();
        let parent = |parent: String| (!parent.is_empty()).then_some(parent);
        let leases = store.leases(namespace, &[]).expect("a list").into_iter().map(|lease| {
            let held = store.resources(namespace, &lease.id).expect("it is there");
            (lease.id, (lease.labels, held.iter().map(object).collect()))
        });
        Space {
            images: images.map(|i| (i.name, (i.target.digest.to_string(), i.labels))).collect(),
            blobs: blobs.map(|b| (b.digest.to_string(), b.labels)).collect(),
            snapshots: snapshots.map(|s| (s.name, (parent(s.parent), s.labels))).collect(),
            leases: leases.collect(),
            writes: before.writes.clone(),
            containers: before.containers.clone(),
        }
    }

    /// The disk changes a blob, and a scrub finds it.
    pub fn rot(&mut self, blob: u8, way: u8) {
        let digest = digest(&bytes(blob));
        let blobs = self.rig.directory.path().join("content/blobs").join(digest.algorithm().as_str());
        let path = blobs.join(digest.hex());
        if path.exists() && self.has(blob) {
            std::fs::remove_file(&path).expect("removed");
            match way % 3 {
                0 => std::fs::write(&path, bytes(blob + 1)).expect("written"),
                1 => std::fs::write(&path, b"blob").expect("written"),
                _ => {}
            }
            self.aside.insert(name_of(blob));
        }
        self.scrub(blob);
    }

    fn scrub(&mut self, blob: u8) {
        let found = self.rig.store.quarantine_blob(&digest(&bytes(blob))).expect("examined");
        let is_damaged = self.aside.contains(&name_of(blob)) && self.has(blob);
        assert_eq!(found.is_some(), is_damaged, "{found:?}");
    }

    fn has(&self, blob: u8) -> bool {
        self.spaces.iter().any(|space| space.blobs.contains_key(&name_of(blob)))
    }
}

/// What an operation takes that it is asked to take.
fn take(space: &mut Space, op: &Op) {
    match op {
        Op::Remove { name, other } => {
            let names: Vec<String> = other.iter().chain([name]).map(|name| image_name(*name)).collect();
            space.images.retain(|name, _| !names.contains(name));
        }
        Op::RemoveSnapshot { name } | Op::CommitSnapshot { key: name, .. } => {
            space.snapshots.remove(&snapshot_name(*name));
        }
        Op::Abort { reference } => {
            space.writes.remove(&write_name(*reference));
        }
        _ => {}
    }
}

/// What an operation makes.
fn makes(op: &Op) -> BTreeSet<Object> {
    match op {
        Op::Commit { blob, .. } => [Object::Blob(name_of(*blob))].into(),
        Op::Prepare { key: name, .. } | Op::CommitSnapshot { name, .. } => {
            [Object::Snapshot(snapshot_name(*name))].into()
        }
        _ => BTreeSet::new(),
    }
}

fn objects(space: &Space) -> BTreeSet<Object> {
    let writes = space.writes.keys().cloned().map(Object::Write);
    space.labelled().into_iter().map(|(object, _)| object).chain(writes).collect()
}

fn open(rig: &Rig, fuse: &Fuse) -> Store {
    let (directory, clock) = (rig.directory.path(), rig.clock.clone());
    let root = directory.join("snapshots").join(DRIVER);
    std::fs::create_dir_all(&root).expect("a directory");
    let content = LocalStore::open(directory.join("content")).expect("a content store");
    let options = OpenOptions {
        content: Arc::new(FusedContent(content, fuse.clone())),
        drivers: vec![Arc::new(FusedDriver(PlainDriver { root }, fuse.clone()))],
        read_only: false,
    };
    let now = move || Timestamp::from_second(clock.load(std::sync::atomic::Ordering::SeqCst)).expect("a time");
    Store::open_with_clock(directory, options, Arc::new(now)).expect("a root")
}
