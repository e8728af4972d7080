//! Random histories of a root against a model of it.
//!
//! The model is written from containerd's rules alone: it knows objects and labels, but neither suspects nor edges. After
//! every collection the root must have exactly what the model keeps, by either way of marking; the disk exactly what the
//! rows name; and a second collection nothing to do.
//!
//! `ORLOP_TEST_SCHEDULES` sets the number of histories.

mod rig;

use std::collections::{BTreeMap, BTreeSet};

use orlop_content::{IngestManager, IngestOptions, Ingester};
use orlop_metadata::gc::{Disposal, Report};
use orlop_metadata::{ImageChange, Labels, Resource, ResourceKind};
use proptest::prelude::*;
use rig::{DRIVER, Rig, at, digest, image};

const NAMESPACES: [&str; 2] = ["one", "two"];

/// Few of each, so that they meet.
const BLOBS: u8 = 5;
const NAMES: u8 = 3;
const LEASES: u8 = 2;

#[derive(Debug, Clone)]
enum Op {
    CreateImage {
        name: u8,
        blob: u8,
        labels: Vec<Label>,
        lease: Option<u8>,
    },
    Retarget {
        name: u8,
        blob: u8,
    },
    LabelImage {
        name: u8,
        labels: Vec<Label>,
    },
    DeleteImage {
        name: u8,
    },
    Commit {
        blob: u8,
        lease: Option<u8>,
        expected: bool,
    },
    LabelBlob {
        blob: u8,
        labels: Vec<Label>,
    },
    Forget {
        blob: u8,
    },
    OpenWrite {
        reference: u8,
        expected: Option<u8>,
        lease: Option<u8>,
    },
    Abort {
        reference: u8,
    },
    CreateLease {
        lease: u8,
        minutes: Option<u8>,
        flat: bool,
    },
    DeleteLease {
        lease: u8,
    },
    AddResource {
        lease: u8,
        kind: u8,
        name: u8,
    },
    DropResource {
        lease: u8,
        kind: u8,
        name: u8,
    },
    Prepare {
        key: u8,
        parent: Option<u8>,
        lease: Option<u8>,
        view: bool,
        labels: Vec<Label>,
    },
    CommitSnapshot {
        key: u8,
        name: u8,
        parent: Option<u8>,
        labels: Vec<Label>,
        lease: Option<u8>,
    },
    RemoveSnapshot {
        name: u8,
    },
    LabelSnapshot {
        name: u8,
        labels: Vec<Label>,
    },
    /// One more step of a pull that other operations interrupt.
    Pull {
        image: u8,
    },
    Advance {
        minutes: u16,
    },
    /// Into the trash; with the record of a second name, if there is one.
    Remove {
        name: u8,
        other: Option<u8>,
    },
    Undo,
    EmptyTrash {
        all: bool,
    },
    Collect,
    CollectFull,
    Reopen,
}

/// A label that matters to collection, or almost.
#[derive(Debug, Clone)]
enum Label {
    Root,
    Expire(u8),
    RefContent(u8, u8),
    RefImage(u8),
    RefSnapshot(u8, bool),
    BackContent(u8, bool),
    BackImage(u8),
    BackSnapshot(u8),
    /// Looks like one, but is none.
    Other(u8, u8),
}

fn bytes(blob: u8) -> Vec<u8> {
    format!("blob {blob}").into_bytes()
}

fn name_of(blob: u8) -> String {
    digest(&bytes(blob)).to_string()
}

fn labels(list: &[Label]) -> Labels {
    let prefix = "containerd.io/gc.";
    let pair = |label: &Label| match *label {
        Label::Root => ("root".to_owned(), "2026".to_owned()),
        Label::Expire(minutes) => ("expire".to_owned(), at(rig::START + i64::from(minutes) * 60)),
        Label::RefContent(0, blob) => ("ref.content".to_owned(), name_of(blob)),
        Label::RefContent(way, blob) if way % 2 == 0 => (format!("ref.content.l.{way}"), name_of(blob)),
        Label::RefContent(way, blob) => (format!("ref.content/x{way}"), name_of(blob)),
        Label::RefImage(name) => ("ref.image".to_owned(), image_name(name)),
        Label::RefSnapshot(name, false) => (format!("ref.snapshot.{DRIVER}"), snapshot_name(name)),
        Label::RefSnapshot(name, true) => (format!("ref.snapshot.{DRIVER}/extra"), snapshot_name(name)),
        Label::BackContent(blob, false) => ("bref.content".to_owned(), name_of(blob)),
        Label::BackContent(blob, true) => ("bref.content.more".to_owned(), name_of(blob)),
        Label::BackImage(name) => ("bref.image".to_owned(), image_name(name)),
        Label::BackSnapshot(name) => (format!("bref.snapshot.{DRIVER}"), snapshot_name(name)),
        Label::Other(0, blob) => ("ref.contents".to_owned(), name_of(blob)),
        Label::Other(1, blob) => ("ref.snapshot.other".to_owned(), snapshot_name(blob)),
        Label::Other(_, blob) => ("ref".to_owned(), name_of(blob)),
    };
    list.iter().map(pair).map(|(key, value)| (format!("{prefix}{key}"), value)).collect()
}

fn image_name(name: u8) -> String {
    format!("image {name}")
}

fn snapshot_name(name: u8) -> String {
    format!("snapshot {name}")
}

fn write_name(reference: u8) -> String {
    format!("write {reference}")
}

fn lease_name(lease: u8) -> String {
    format!("lease {lease}")
}

fn resource(kind: u8, name: u8) -> Resource {
    match kind % 4 {
        0 => Resource { kind: ResourceKind::Content, name: name_of(name) },
        1 => Resource { kind: ResourceKind::Images, name: image_name(name % NAMES) },
        2 => Resource { kind: ResourceKind::Ingests, name: write_name(name % NAMES) },
        _ => Resource { kind: ResourceKind::Snapshots(DRIVER.to_owned()), name: snapshot_name(name) },
    }
}

// ---- The model ----

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Blob(String),
    Image(String),
    Write(String),
    Snapshot(String),
}

#[derive(Debug, Clone, Default)]
struct Space {
    images: BTreeMap<String, (String, Labels)>,
    blobs: BTreeMap<String, Labels>,
    writes: BTreeMap<String, (Option<String>, Option<i64>)>,
    leases: BTreeMap<String, (Labels, BTreeSet<Object>)>,
    snapshots: BTreeMap<String, (Option<String>, Labels)>,
}

fn after<'a>(key: &'a str, word: &str) -> Option<&'a str> {
    key.strip_prefix("containerd.io/gc.")?.strip_prefix(word)
}

fn object_of(kind: &str, value: &str) -> Option<Object> {
    let named =
        |word: &str| kind == word || kind.starts_with(&format!("{word}.")) || kind.starts_with(&format!("{word}/"));
    if let Some(driver) = kind.strip_prefix("snapshot.") {
        return (driver.split('/').next() == Some(DRIVER)).then(|| Object::Snapshot(value.to_owned()));
    }
    if named("content") {
        return Some(Object::Blob(value.to_owned()));
    }
    named("image").then(|| Object::Image(value.to_owned()))
}

fn expired(labels: &Labels, now: i64) -> bool {
    let end = labels.get("containerd.io/gc.expire").and_then(|v| v.parse::<jiff::Timestamp>().ok());
    end.is_some_and(|end| end.as_second() < now)
}

impl Space {
    /// Every object with its labels.
    fn labelled(&self) -> Vec<(Object, &Labels)> {
        let images = self.images.iter().map(|(name, (_, labels))| (Object::Image(name.clone()), labels));
        let blobs = self.blobs.iter().map(|(name, labels)| (Object::Blob(name.clone()), labels));
        let snapshots = self.snapshots.iter().map(|(name, (_, labels))| (Object::Snapshot(name.clone()), labels));
        images.chain(blobs).chain(snapshots).collect()
    }

    /// Everything that is kept, whether it exists or not.
    fn kept(&self, now: i64) -> BTreeSet<Object> {
        let mut kept = self.reach(self.strong_roots(now), true);
        kept.extend(self.reach(self.flat_roots(now), false));
        kept
    }

    fn strong_roots(&self, now: i64) -> BTreeSet<Object> {
        let mut roots = BTreeSet::new();
        for (name, (_, labels)) in &self.images {
            if !expired(labels, now) {
                roots.insert(Object::Image(name.clone()));
            }
        }
        for (name, (_, end)) in &self.writes {
            if end.is_some_and(|end| end >= now) {
                roots.insert(Object::Write(name.clone()));
            }
        }
        for (object, labels) in self.labelled() {
            if !matches!(object, Object::Image(_)) && labels.contains_key("containerd.io/gc.root") {
                roots.insert(object);
            }
        }
        for (labels, held) in self.leases.values().filter(|(labels, _)| !expired(labels, now)) {
            let flat = labels.contains_key("containerd.io/gc.flat");
            roots.extend(held.iter().filter(|o| !flat || matches!(o, Object::Write(_))).cloned());
        }
        roots
    }

    fn flat_roots(&self, now: i64) -> BTreeSet<Object> {
        let flat = |labels: &Labels| !expired(labels, now) && labels.contains_key("containerd.io/gc.flat");
        self.leases.values().filter(|(labels, _)| flat(labels)).flat_map(|(_, held)| held.iter().cloned()).collect()
    }

    fn reach(&self, roots: BTreeSet<Object>, by_labels: bool) -> BTreeSet<Object> {
        let mut reached = roots;
        loop {
            let more: BTreeSet<Object> = reached
                .iter()
                .flat_map(|object| self.next(object, by_labels))
                .filter(|object| !reached.contains(object))
                .collect();
            if more.is_empty() {
                return reached;
            }
            reached.extend(more);
        }
    }

    fn next(&self, object: &Object, by_labels: bool) -> Vec<Object> {
        let mut next = Vec::new();
        match object {
            Object::Image(name) => next.extend(self.images.get(name).map(|(target, _)| Object::Blob(target.clone()))),
            Object::Write(name) => {
                next.extend(self.writes.get(name).and_then(|(digest, _)| digest.clone()).map(Object::Blob));
            }
            Object::Snapshot(name) => {
                next.extend(self.snapshots.get(name).and_then(|(parent, _)| parent.clone()).map(Object::Snapshot));
            }
            Object::Blob(_) => {}
        }
        if by_labels {
            for (owner, labels) in self.labelled() {
                for (key, value) in labels {
                    if owner == *object {
                        next.extend(after(key, "ref.").and_then(|kind| object_of(kind, value)));
                    }
                    if after(key, "bref.").and_then(|kind| object_of(kind, value)).as_ref() == Some(object) {
                        next.push(owner.clone());
                    }
                }
            }
        }
        next
    }

    fn sweep(&mut self, now: i64) {
        let kept = self.kept(now);
        self.images.retain(|name, _| kept.contains(&Object::Image(name.clone())));
        self.blobs.retain(|name, _| kept.contains(&Object::Blob(name.clone())));
        self.writes.retain(|name, _| kept.contains(&Object::Write(name.clone())));
        self.snapshots.retain(|name, _| kept.contains(&Object::Snapshot(name.clone())));
        self.leases.retain(|_, (labels, _)| !expired(labels, now));
    }

    fn hold(&mut self, lease: Option<u8>, object: Object) {
        if let Some((_, held)) = lease.and_then(|lease| self.leases.get_mut(&lease_name(lease))) {
            held.insert(object);
        }
    }

    fn drop_hold(&mut self, lease: Option<u8>, object: &Object) {
        if let Some((_, held)) = lease.and_then(|lease| self.leases.get_mut(&lease_name(lease))) {
            held.remove(object);
        }
    }
}

fn object(resource: &Resource) -> Object {
    let name = resource.name.clone();
    match resource.kind {
        ResourceKind::Content => Object::Blob(name),
        ResourceKind::Images => Object::Image(name),
        ResourceKind::Ingests => Object::Write(name),
        ResourceKind::Snapshots(_) => Object::Snapshot(name),
    }
}

// ---- Both together ----

struct World {
    rig: Rig,
    spaces: [Space; 2],
    /// How far each pull is.
    pulls: BTreeMap<(usize, u8), u8>,
}

impl World {
    fn apply(&mut self, space: usize, op: &Op) {
        match op {
            Op::Advance { minutes } => self.rig.advance(i64::from(*minutes) * 60),
            Op::Collect => self.collect(),
            Op::CollectFull => self.collect_full(),
            Op::Reopen => self.rig.reopen(),
            Op::Remove { name, other } => self.remove(space, *name, *other),
            Op::Undo => self.undo(space),
            Op::EmptyTrash { all } => self.empty_trash(*all),
            Op::Pull { image } => self.pull(space, *image),
            Op::CreateImage { .. } | Op::Retarget { .. } | Op::LabelImage { .. } | Op::DeleteImage { .. } => {
                self.image(space, op);
            }
            Op::Commit { .. } | Op::LabelBlob { .. } | Op::Forget { .. } => self.blob(space, op),
            Op::OpenWrite { .. } | Op::Abort { .. } => self.write(space, op),
            Op::CreateLease { .. } | Op::DeleteLease { .. } | Op::AddResource { .. } | Op::DropResource { .. } => {
                self.lease(space, op);
            }
            _ => self.snapshot(space, op),
        }
    }

    fn image(&mut self, space: usize, op: &Op) {
        let (rig, model) = (&self.rig, &mut self.spaces[space]);
        match op {
            Op::CreateImage { name, blob, labels: list, lease } => {
                let (name, labels) = (image_name(*name), labels(list));
                let mut new = image(&name, &digest(&bytes(*blob)), &[]);
                new.labels = labels.clone();
                let scope = rig.scope(NAMESPACES[space], lease.map(lease_name).as_deref());
                if rig.store.create_image(&scope, new).is_ok() {
                    if labels.contains_key("containerd.io/gc.expire") {
                        model.hold(*lease, Object::Image(name.clone()));
                    }
                    assert!(model.images.insert(name, (name_of(*blob), labels)).is_none(), "created twice");
                }
            }
            Op::Retarget { name, blob } => {
                let name = image_name(*name);
                let new = image(&name, &digest(&bytes(*blob)), &[]);
                let done = rig.store.update_image(&rig.scope(NAMESPACES[space], None), new, &["target".to_owned()]);
                assert_eq!(done.is_ok(), model.images.contains_key(&name));
                model.images.entry(name).and_modify(|(target, _)| *target = name_of(*blob));
            }
            Op::LabelImage { name, labels: list } => {
                let (name, new) = (image_name(*name), labels(list));
                let mut update = image(&name, &digest(b""), &[]);
                update.labels = new.clone();
                let done = rig.store.update_image(&rig.scope(NAMESPACES[space], None), update, &["labels".to_owned()]);
                assert_eq!(done.is_ok(), model.images.contains_key(&name));
                model.images.entry(name).and_modify(|(_, labels)| *labels = new);
            }
            Op::DeleteImage { name } => {
                let name = image_name(*name);
                let done = rig.store.delete_image(&rig.scope(NAMESPACES[space], None), &name, None);
                assert_eq!(done.is_ok(), model.images.remove(&name).is_some());
            }
            _ => unreachable!("not an image's"),
        }
    }

    fn blob(&mut self, space: usize, op: &Op) {
        let (rig, model) = (&self.rig, &mut self.spaces[space]);
        match op {
            Op::Commit { blob, lease, expected } => {
                if lease.is_some_and(|lease| !model.leases.contains_key(&lease_name(lease))) {
                    return;
                }
                let scope = rig.scope(NAMESPACES[space], lease.map(lease_name).as_deref());
                rig.runtime.block_on(commit(rig, &scope, *blob, *expected)).expect("committed");
                model.hold(*lease, Object::Blob(name_of(*blob)));
                model.blobs.entry(name_of(*blob)).or_default();
            }
            Op::LabelBlob { blob, labels: list } => {
                let new = labels(list);
                let content = rig.store.content(&rig.scope(NAMESPACES[space], None));
                let done = content.update(&digest(&bytes(*blob)), new.clone(), &[]);
                assert_eq!(done.is_ok(), model.blobs.contains_key(&name_of(*blob)));
                model.blobs.entry(name_of(*blob)).and_modify(|labels| *labels = new);
            }
            Op::Forget { blob } => {
                let content = rig.store.content(&rig.scope(NAMESPACES[space], None));
                let done = content.forget(&digest(&bytes(*blob)));
                assert_eq!(done.is_ok(), model.blobs.remove(&name_of(*blob)).is_some());
            }
            _ => unreachable!("not a blob's"),
        }
    }

    fn write(&mut self, space: usize, op: &Op) {
        let (rig, now) = (&self.rig, self.rig.seconds());
        let model = &mut self.spaces[space];
        match op {
            Op::OpenWrite { reference, expected, lease } => {
                if lease.is_some_and(|lease| !model.leases.contains_key(&lease_name(lease))) {
                    return;
                }
                let name = write_name(*reference);
                let scope = rig.scope(NAMESPACES[space], lease.map(lease_name).as_deref());
                let content = rig.store.content(&scope);
                let options = IngestOptions {
                    reference: name.clone(),
                    total: 0,
                    expected: expected.map(|blob| digest(&bytes(blob))),
                };
                match rig.runtime.block_on(content.writer(options)).map(drop) {
                    Ok(()) => {
                        model.hold(*lease, Object::Write(name.clone()));
                        let end = lease.is_none().then_some(now + 24 * 3600);
                        let new = (expected.map(name_of), end);
                        model.writes.entry(name).and_modify(|(_, old)| *old = end.or(*old)).or_insert(new);
                    }
                    Err(orlop_content::Error::AlreadyExists(digest)) => {
                        assert!(model.blobs.contains_key(digest.as_str()), "{digest} is not in {space}");
                        model.hold(*lease, Object::Blob(digest.to_string()));
                        // The ref is free again; what may have been written under it is gone.
                        if rig.runtime.block_on(content.status(&name)).is_err() {
                            model.writes.remove(&name);
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Abort { reference } => {
                let name = write_name(*reference);
                let content = rig.store.content(&rig.scope(NAMESPACES[space], None));
                let done = rig.runtime.block_on(content.abort(&name));
                assert_eq!(done.is_ok(), model.writes.remove(&name).is_some());
            }
            _ => unreachable!("not a write's"),
        }
    }

    fn lease(&mut self, space: usize, op: &Op) {
        let (rig, model, namespace) = (&self.rig, &mut self.spaces[space], NAMESPACES[space]);
        match op {
            Op::CreateLease { lease, minutes, flat } => {
                let mut new = Labels::new();
                if let Some(minutes) = minutes {
                    let end = self.rig.seconds() + i64::from(*minutes) * 60;
                    new.insert("containerd.io/gc.expire".to_owned(), at(end));
                }
                if *flat {
                    new.insert("containerd.io/gc.flat".to_owned(), "1".to_owned());
                }
                if rig.store.create_lease(namespace, &lease_name(*lease), new.clone()).is_ok() {
                    model.leases.insert(lease_name(*lease), (new, BTreeSet::new()));
                }
            }
            Op::DeleteLease { lease } => {
                let done = rig.store.delete_lease(namespace, &lease_name(*lease));
                assert_eq!(done.is_ok(), model.leases.remove(&lease_name(*lease)).is_some());
            }
            Op::AddResource { lease, kind, name } => {
                let resource = resource(*kind, *name);
                if rig.store.add_resource(namespace, &lease_name(*lease), &resource).is_ok() {
                    model.hold(Some(*lease), object(&resource));
                }
            }
            Op::DropResource { lease, kind, name } => {
                let resource = resource(*kind, *name);
                if rig.store.delete_resource(namespace, &lease_name(*lease), &resource).is_ok() {
                    model.drop_hold(Some(*lease), &object(&resource));
                }
            }
            _ => unreachable!("not a lease's"),
        }
    }

    fn snapshot(&mut self, space: usize, op: &Op) {
        let (rig, model, namespace) = (&self.rig, &mut self.spaces[space], NAMESPACES[space]);
        let known = |model: &Space, lease: &Option<u8>| lease.is_none_or(|l| model.leases.contains_key(&lease_name(l)));
        match op {
            Op::Prepare { key, parent, lease, view, labels: list } if known(model, lease) => {
                let (key, parent, labels) = (snapshot_name(*key), parent.map(snapshot_name), labels(list));
                let snapshots = rig.snapshots(namespace, lease.map(lease_name).as_deref());
                let below = parent.clone().unwrap_or_default();
                let done = match view {
                    false => snapshots.prepare(&key, &below, labels.clone()),
                    true => snapshots.view(&key, &below, labels.clone()),
                };
                match done {
                    Ok(_) => {
                        model.hold(*lease, Object::Snapshot(key.clone()));
                        assert!(model.snapshots.insert(key, (parent, labels)).is_none(), "prepared twice");
                    }
                    Err(orlop_metadata::Error::AlreadyExists { name, .. }) => {
                        model.hold(*lease, Object::Snapshot(name))
                    }
                    Err(_) => {}
                }
            }
            Op::CommitSnapshot { key, name, parent, labels: list, lease } if known(model, lease) => {
                let (key, name, labels) = (snapshot_name(*key), snapshot_name(*name), labels(list));
                let parent = parent.map(snapshot_name);
                let snapshots = rig.snapshots(namespace, lease.map(lease_name).as_deref());
                match snapshots.commit(&name, &key, parent.as_deref(), labels.clone()) {
                    Ok(()) => {
                        let (below, _) = model.snapshots.remove(&key).expect("only what is there can be committed");
                        model.drop_hold(*lease, &Object::Snapshot(key));
                        model.hold(*lease, Object::Snapshot(name.clone()));
                        model.snapshots.insert(name, (below.or(parent), labels));
                    }
                    Err(orlop_metadata::Error::AlreadyExists { name, .. }) => {
                        model.hold(*lease, Object::Snapshot(name))
                    }
                    Err(_) => {}
                }
            }
            Op::RemoveSnapshot { name } => {
                let name = snapshot_name(*name);
                let is_parent = model.snapshots.values().any(|(parent, _)| parent.as_ref() == Some(&name));
                let done = rig.snapshots(namespace, None).remove(&name);
                assert_eq!(done.is_ok(), !is_parent && model.snapshots.remove(&name).is_some());
            }
            Op::LabelSnapshot { name, labels: list } => {
                let (name, new) = (snapshot_name(*name), labels(list));
                let done = rig.snapshots(namespace, None).update(&name, new.clone(), &[]);
                assert_eq!(done.is_ok(), model.snapshots.contains_key(&name));
                model.snapshots.entry(name).and_modify(|(_, labels)| *labels = new);
            }
            _ => {}
        }
    }

    /// A pull as clients do it: everything under a lease, the record last, then the lease goes. Whatever happens in
    /// between, what it has made stays.
    fn pull(&mut self, space: usize, number: u8) {
        let step = self.pulls.entry((space, number)).or_insert(0);
        let now = *step;
        *step = (*step + 1) % 6;
        let lease = 10 + number;
        let (manifest, layer) = (number, (number + 1) % BLOBS);
        if now > 0 && !self.spaces[space].leases.contains_key(&lease_name(lease)) {
            // The lease expired: the client starts anew.
            self.pulls.insert((space, number), 0);
            return;
        }
        let lease_op = Some(lease);
        let op = match now {
            0 => Op::CreateLease { lease, minutes: Some(60), flat: false },
            1 => Op::Commit { blob: manifest, lease: lease_op, expected: true },
            2 => Op::Commit { blob: layer, lease: lease_op, expected: true },
            3 => Op::LabelBlob { blob: manifest, labels: vec![Label::RefContent(0, layer)] },
            4 => Op::CreateImage { name: number % NAMES, blob: manifest, labels: Vec::new(), lease: lease_op },
            _ => Op::DeleteLease { lease },
        };
        self.apply(space, &op);
    }

    fn remove(&mut self, space: usize, name: u8, other: Option<u8>) {
        let names: BTreeSet<String> = other.into_iter().chain([name]).map(image_name).collect();
        let changes: Vec<_> = names.iter().map(|name| ImageChange::Delete { name: name.clone() }).collect();
        let scope = self.rig.scope(NAMESPACES[space], None);
        let report = self.rig.store.delete_to_trash(&scope, &changes, "test").expect("deleted");
        self.sweep_model();
        let before = self.spaces.clone();
        self.spaces[space].images.retain(|name, _| !names.contains(name));
        self.sweep_model();
        let gone =
            |of: fn(&Space) -> usize| before.iter().map(of).sum::<usize>() - self.spaces.iter().map(of).sum::<usize>();
        assert_eq!(report.content.len(), gone(|s| s.blobs.len()));
        assert_eq!(report.snapshots.len(), gone(|s| s.snapshots.len()));
        assert_eq!(report.trash.is_some(), gone(|s| s.blobs.len() + s.snapshots.len() + s.images.len()) > 0);
        self.compare();
    }

    /// What comes back depends on what else happened to it; the model takes it over as it is. All rules go on to hold.
    fn undo(&mut self, space: usize) {
        let Some(entry) = self.rig.store.trash().expect("a list").into_iter().next() else { return };
        let before = self.spaces.clone();
        let undone = self.rig.store.undo(&self.rig.scope(NAMESPACES[space], None), None).expect("undone");
        assert_eq!(undone.images.len() + undone.kept.len(), entry.images.len());
        for (space, namespace) in self.spaces.iter_mut().zip(NAMESPACES) {
            let scope = self.rig.scope(namespace, None);
            let images = self.rig.store.images(namespace, &[]).expect("a list").into_iter();
            space.images = images.map(|i| (i.name, (i.target.digest.to_string(), i.labels))).collect();
            let blobs = self.rig.store.content(&scope).find(&[]).expect("a list").into_iter();
            space.blobs = blobs.map(|b| (b.digest.to_string(), b.labels)).collect();
            let snapshots = self.rig.snapshots(namespace, None).list(&[]).expect("a list").into_iter();
            let parent = |parent: String| (!parent.is_empty()).then_some(parent);
            space.snapshots = snapshots.map(|s| (s.name, (parent(s.parent), s.labels))).collect();
        }
        for (now, before) in self.spaces.iter().zip(&before) {
            assert!(
                before.images.iter().all(|(name, image)| now.images.get(name) == Some(image)),
                "changed by an undo"
            );
            assert!(before.blobs.keys().all(|name| now.blobs.contains_key(name)), "lost by an undo");
            assert!(before.snapshots.iter().all(|(name, s)| now.snapshots.get(name) == Some(s)), "changed by an undo");
        }
        self.compare();
        assert_eq!(self.rig.store.check_metadata().expect("a check"), []);
    }

    fn empty_trash(&mut self, all: bool) {
        self.rig.store.empty_trash(if all { 0 } else { 1800 }, if all { 0 } else { 4096 }).expect("emptied");
        let trash = self.rig.directory.path().join("trash");
        let entries = self.rig.store.trash().expect("a list").into_iter().map(|entry| entry.id);
        let left: BTreeSet<String> = std::fs::read_dir(trash)
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        assert!(left.is_subset(&entries.collect()), "left in the trash: {left:?}");
    }

    fn sweep_model(&mut self) {
        let now = self.rig.seconds();
        self.spaces.iter_mut().for_each(|space| space.sweep(now));
    }

    fn collect(&mut self) {
        let plan = self.rig.store.plan_collection(&[]).expect("a plan");
        let report = self.rig.store.collect(Disposal::Reclaim).expect("a collection");
        assert_eq!(plan.clone(), Report { visited: plan.visited, ..report.clone() }, "the plan was wrong");
        self.sweep_model();
        self.compare();
        let oracle = self.rig.store.collect_full(Disposal::Reclaim).expect("a collection");
        assert_eq!(
            oracle.clone(),
            Report { visited: oracle.visited, ..Report::default() },
            "missed by the incremental way"
        );
    }

    fn collect_full(&mut self) {
        self.rig.store.collect_full(Disposal::Reclaim).expect("a collection");
        self.sweep_model();
        self.compare();
        let again = self.rig.store.collect(Disposal::Reclaim).expect("a collection");
        assert_eq!(again.clone(), Report { visited: again.visited, ..Report::default() }, "a second run removed more");
    }

    fn compare(&self) {
        let mut needed = BTreeSet::new();
        let mut maybe = BTreeSet::new();
        for (space, namespace) in self.spaces.iter().zip(NAMESPACES) {
            let keys = |names: BTreeSet<&String>| names.into_iter().cloned().collect::<BTreeSet<_>>();
            let digests: BTreeSet<String> = self.rig.blobs(namespace).iter().map(ToString::to_string).collect();
            assert_eq!(digests, keys(space.blobs.keys().collect()), "blobs of {namespace}");
            assert_eq!(self.rig.names(namespace), keys(space.images.keys().collect()), "images of {namespace}");
            assert_eq!(self.rig.keys(namespace), keys(space.snapshots.keys().collect()), "snapshots of {namespace}");
            let leases = self.rig.store.leases(namespace, &[]).expect("a list").into_iter().map(|l| l.id);
            assert_eq!(leases.collect::<BTreeSet<_>>(), keys(space.leases.keys().collect()), "leases of {namespace}");
            needed.extend(digests);
            maybe.extend(space.writes.values().filter_map(|(expected, _)| expected.clone()));
        }
        let on_disk = self.rig.blobs_on_disk();
        assert!(on_disk.is_superset(&needed), "lost: {:?}", needed.difference(&on_disk));
        let extra: BTreeSet<_> = on_disk.difference(&needed).cloned().collect();
        assert!(extra.is_subset(&maybe), "left on disk: {extra:?}");
        let trees: usize = self.spaces.iter().map(|s| s.snapshots.len()).sum();
        assert_eq!(self.rig.trees_on_disk(), trees, "trees");
        assert!(needed.iter().all(|digest| self.rig.reads(&digest.parse().expect("a digest"))));
        let writes: usize = self.spaces.iter().map(|s| s.writes.len()).sum();
        assert!(self.rig.writes_on_disk() <= writes, "writes left on disk");
    }
}

async fn commit(rig: &Rig, scope: &orlop_metadata::Scope, blob: u8, expected: bool) -> orlop_content::Result<()> {
    if expected {
        return rig::put(&rig.store, scope, "commit", &bytes(blob)).await;
    }
    let content = rig.store.content(scope);
    let mut writer = content.writer(IngestOptions { reference: "blind".to_owned(), total: 0, expected: None }).await?;
    writer.truncate(0).await?;
    writer.write(bytes(blob).into()).await?;
    match writer.commit(0, None).await {
        Ok(_) | Err(orlop_content::Error::AlreadyExists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

// ---- Histories ----

/// At most two labels; `expires` weighs how often one of them is an expiry.
fn some_labels(expires: u32) -> impl Strategy<Value = Vec<Label>> {
    let label = prop_oneof![
        1 => Just(Label::Root),
        1 + expires => (0..120u8).prop_map(Label::Expire),
        5 => (0..3u8, 0..BLOBS).prop_map(|(way, blob)| Label::RefContent(way, blob)),
        2 => (0..NAMES).prop_map(Label::RefImage),
        3 => (0..NAMES, any::<bool>()).prop_map(|(name, extra)| Label::RefSnapshot(name, extra)),
        3 => (0..BLOBS, any::<bool>()).prop_map(|(blob, named)| Label::BackContent(blob, named)),
        3 => (0..NAMES).prop_map(Label::BackImage),
        2 => (0..NAMES).prop_map(Label::BackSnapshot),
        1 => (0..3u8, 0..BLOBS).prop_map(|(way, blob)| Label::Other(way, blob)),
    ];
    prop::collection::vec(label, 0..3)
}

fn op() -> impl Strategy<Value = Op> {
    let lease = || prop::option::weighted(0.3, 0..LEASES);
    let images = prop_oneof![
        3 => (0..NAMES, 0..BLOBS, some_labels(8), lease())
            .prop_map(|(name, blob, labels, lease)| Op::CreateImage { name, blob, labels, lease }),
        1 => (0..NAMES, 0..BLOBS).prop_map(|(name, blob)| Op::Retarget { name, blob }),
        1 => (0..NAMES, some_labels(8)).prop_map(|(name, labels)| Op::LabelImage { name, labels }),
        3 => (0..NAMES).prop_map(|name| Op::DeleteImage { name }),
    ];
    let blobs = prop_oneof![
        6 => (0..BLOBS, lease(), any::<bool>())
            .prop_map(|(blob, lease, expected)| Op::Commit { blob, lease, expected }),
        8 => (0..BLOBS, some_labels(0)).prop_map(|(blob, labels)| Op::LabelBlob { blob, labels }),
        1 => (0..BLOBS).prop_map(|blob| Op::Forget { blob }),
        3 => (0..NAMES, prop::option::weighted(0.8, 0..BLOBS), lease())
            .prop_map(|(reference, expected, lease)| Op::OpenWrite { reference, expected, lease }),
        1 => (0..NAMES).prop_map(|reference| Op::Abort { reference }),
    ];
    let leases = prop_oneof![
        3 => (0..LEASES, prop::option::of(0..90u8), prop::bool::weighted(0.6))
            .prop_map(|(lease, minutes, flat)| Op::CreateLease { lease, minutes, flat }),
        2 => (0..LEASES).prop_map(|lease| Op::DeleteLease { lease }),
        4 => (0..LEASES, 0..4u8, 0..NAMES).prop_map(|(lease, kind, name)| Op::AddResource { lease, kind, name }),
        1 => (0..LEASES, 0..4u8, 0..NAMES).prop_map(|(lease, kind, name)| Op::DropResource { lease, kind, name }),
    ];
    let parent = || prop::option::of(0..NAMES);
    let snapshots = prop_oneof![
        4 => (0..NAMES, parent(), lease(), prop::bool::weighted(0.2), some_labels(0))
            .prop_map(|(key, parent, lease, view, labels)| Op::Prepare { key, parent, lease, view, labels }),
        4 => (0..NAMES, 0..NAMES, parent(), some_labels(0), lease())
            .prop_map(|(key, name, parent, labels, lease)| Op::CommitSnapshot { key, name, parent, labels, lease }),
        1 => (0..NAMES).prop_map(|name| Op::RemoveSnapshot { name }),
        2 => (0..NAMES, some_labels(0)).prop_map(|(name, labels)| Op::LabelSnapshot { name, labels }),
    ];
    prop_oneof![
        10 => images,
        16 => blobs,
        10 => leases,
        10 => snapshots,
        4 => (0..BLOBS).prop_map(|image| Op::Pull { image }),
        4 => (1..50u16).prop_map(|minutes| Op::Advance { minutes }),
        1 => Just(Op::Advance { minutes: 25 * 60 }),
        6 => Just(Op::Collect),
        1 => Just(Op::CollectFull),
        4 => (0..NAMES, prop::option::of(0..NAMES)).prop_map(|(name, other)| Op::Remove { name, other }),
        3 => Just(Op::Undo),
        1 => any::<bool>().prop_map(|all| Op::EmptyTrash { all }),
        1 => Just(Op::Reopen),
    ]
}

fn schedules() -> u32 {
    std::env::var("ORLOP_TEST_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn collections_keep_what_the_model_keeps(
        // Mostly one namespace, so that things meet; the other shows that it is another.
        history in prop::collection::vec((prop::bool::weighted(0.1).prop_map(usize::from), op()), 1..120),
    ) {
        let mut world = World { rig: Rig::new(), spaces: Default::default(), pulls: BTreeMap::new() };
        for (space, op) in &history {
            world.apply(*space, op);
        }
        world.collect();
    }
}
