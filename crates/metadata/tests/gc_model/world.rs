//! A root and its model, to which the same things happen.

use std::collections::{BTreeMap, BTreeSet};

use orlop_content::{IngestManager, IngestOptions, Ingester};
use orlop_metadata::gc::{Disposal, Report};
use orlop_metadata::{ImageChange, Labels};

use crate::fuse::Fuse;
use crate::model::{Object, Space, object};
use crate::ops::*;
use crate::rig::{self, DRIVER, Rig, at, digest, image};

/// Refs of writes that are committed at once: with the digest known from the first, and only at the end.
pub const COMMITS: [&str; 2] = ["commit", "blind"];

pub struct World {
    pub rig: Rig,
    pub spaces: [Space; 2],
    /// How far each pull is.
    pub pulls: BTreeMap<(usize, u8), u8>,
    /// Makes the process die.
    pub fuse: Fuse,
    /// Blobs whose bytes were damaged and set aside, until somebody writes them again.
    pub aside: BTreeSet<String>,
    /// Until when trees that nobody made to the end may stay.
    pub unmade: Vec<i64>,
}

impl World {
    pub fn apply(&mut self, space: usize, op: &Op) {
        match op {
            Op::Advance { minutes } => self.rig.advance(i64::from(*minutes) * 60),
            Op::Collect => self.collect(),
            Op::CollectFull => self.collect_full(),
            Op::Reopen => self.reopen(),
            Op::Crash { steps, op } => self.crash(space, *steps, op),
            Op::Rot { blob, way } => self.rot(*blob, *way),
            Op::Remove { name, other } => self.remove(space, *name, *other),
            Op::PlanWithout { names } => self.plan_without(space, *names),
            Op::Undo => self.undo(space),
            Op::EmptyTrash { all } => self.empty_trash(*all),
            Op::Pull { image } => self.pull(space, *image),
            Op::Use { .. } => self.use_snapshot(space, op),
            Op::CreateImage { .. } | Op::Retarget { .. } | Op::LabelImage { .. } | Op::DeleteImage { .. } => {
                self.image(space, op);
            }
            Op::Commit { .. } | Op::LabelBlob { .. } | Op::Forget { .. } => self.blob(space, op),
            Op::OpenWrite { .. } | Op::Abort { .. } => self.write(space, op),
            Op::CreateLease { .. } | Op::DeleteLease { .. } | Op::AddResource { .. } | Op::DropResource { .. } => {
                self.lease(space, op);
            }
            Op::CreateContainer { .. } | Op::LabelContainer { .. } | Op::DeleteContainer { .. } => {
                self.container(space, op);
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
                // Whoever writes it mends it.
                self.aside.remove(&name_of(*blob));
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
                        // It is there, but its bytes are lost: so that it still is when they come, the lease has it already.
                        let lost = expected.map(name_of).filter(|blob| model.blobs.contains_key(blob));
                        lost.into_iter().for_each(|blob| model.hold(*lease, Object::Blob(blob)));
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

    fn container(&mut self, space: usize, op: &Op) {
        let (rig, model) = (&self.rig, &mut self.spaces[space]);
        let scope = rig.scope(NAMESPACES[space], None);
        match op {
            Op::CreateContainer { id, snapshot, labels: list } => {
                let (id, key, labels) = (container_name(*id), snapshot.map(snapshot_name), labels(list));
                let done = rig.store.create_container(&scope, rig::container(&id, key.as_deref(), &labels));
                assert_eq!(done.is_ok(), !model.containers.contains_key(&id));
                model.containers.entry(id).or_insert((key, labels));
            }
            Op::LabelContainer { id, labels: list } => {
                let (id, new) = (container_name(*id), labels(list));
                let update = rig::container(&id, None, &new);
                let done = rig.store.update_container(&scope, update, &["labels".to_owned()]);
                assert_eq!(done.is_ok(), model.containers.contains_key(&id));
                model.containers.entry(id).and_modify(|(_, labels)| *labels = new);
            }
            Op::DeleteContainer { id } => {
                let id = container_name(*id);
                let done = rig.store.delete_container(&scope, &id);
                assert_eq!(done.is_ok(), model.containers.remove(&id).is_some());
            }
            _ => unreachable!("not a container's"),
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

    fn use_snapshot(&mut self, space: usize, op: &Op) {
        let &Op::Use { name, ago, newer, minutes } = op else { unreachable!("not a use") };
        let used = Label::Used { more: false, minutes: (self.rig.seconds() - rig::START) / 60 - ago };
        let condition = Label::Condition { way: 0, newer, minutes, name };
        if !self.spaces[space].snapshots.contains_key(&snapshot_name(name)) {
            self.apply(space, &Op::Prepare { key: name, parent: None, lease: None, view: false, labels: Vec::new() });
        }
        if !self.spaces[space].images.contains_key(&image_name(name)) {
            self.apply(space, &Op::CreateImage { name, blob: name, labels: Vec::new(), lease: None });
        }
        self.apply(space, &Op::LabelSnapshot { name, labels: vec![used] });
        self.apply(space, &Op::LabelImage { name, labels: vec![condition] });
    }

    fn remove(&mut self, space: usize, name: u8, other: Option<u8>) {
        let names: BTreeSet<String> = other.into_iter().chain([name]).map(image_name).collect();
        let changes: Vec<_> = names.iter().map(|name| ImageChange::Delete { name: name.clone() }).collect();
        let scope = self.rig.scope(NAMESPACES[space], None);
        let report = self
            .rig
            .store
            .delete_images(&scope, &changes, &Disposal::Trash { reason: "test".into() }, None)
            .expect("deleted");
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
    /// A plan takes exactly what would be garbage without the records, whatever else is garbage already.
    fn plan_without(&mut self, space: usize, names: u8) {
        let names: BTreeSet<String> = (0..NAMES).filter(|n| names & (1 << n) != 0).map(image_name).collect();
        let records: Vec<_> = names.iter().map(|name| (NAMESPACES[space].to_owned(), name.clone())).collect();
        let plan = self.rig.store.plan_collection(&records).expect("a plan");
        let mut without = self.spaces.clone();
        without[space].images.retain(|name, _| !names.contains(name));
        let mut after = without.clone();
        after.iter_mut().for_each(|space| space.sweep(self.rig.seconds()));
        let mut gone = Report::default();
        for ((before, after), namespace) in without.iter().zip(&after).zip(NAMESPACES) {
            let named = |name: &String| (namespace.to_owned(), name.clone());
            let is_gone = |name: &&String| !after.blobs.contains_key(*name);
            gone.content.extend(before.blobs.keys().filter(is_gone).map(named));
            gone.images.extend(before.images.keys().filter(|name| !after.images.contains_key(*name)).map(named));
            let trees = before.snapshots.keys().filter(|name| !after.snapshots.contains_key(*name));
            gone.snapshots.extend(trees.map(|name| (namespace.to_owned(), DRIVER.to_owned(), name.clone())));
        }
        assert_eq!((&plan.content, &plan.snapshots, &plan.images), (&gone.content, &gone.snapshots, &gone.images));
        let before = self.rig.store.plan_collection(&[]).expect("a plan");
        let freed = |report: &Report| report.blob_bytes + report.snapshot_bytes;
        let more = self.rig.store.bytes_kept_by(&records).expect("a plan");
        assert_eq!(more, freed(&plan) - freed(&before));
        // The same of all namespaces' records with these names, found while they are counted.
        let of = |(space, namespace): (&Space, &str)| {
            let there = names.iter().filter(|name| space.images.contains_key(*name));
            there.map(|name| (namespace.to_owned(), name.clone())).collect::<Vec<_>>()
        };
        let everywhere: Vec<_> = self.spaces.iter().zip(NAMESPACES).flat_map(of).collect();
        let cost = self.rig.store.cost_of_records(|name, _| names.iter().any(|n| n == name)).expect("a sum");
        let kept = self.rig.store.bytes_kept_by(&everywhere).expect("a plan");
        assert_eq!((cost.records, cost.kept_bytes), (everywhere.len() as u64, kept));
    }

    fn undo(&mut self, space: usize) {
        let Some(entry) = self.rig.store.trash().expect("a list").into_iter().next() else { return };
        let before = self.spaces.clone();
        let undone = self.rig.store.undo(&self.rig.scope(NAMESPACES[space], None), None).expect("undone");
        assert_eq!(undone.images.len() + undone.kept.len(), entry.images.len());
        // The trash may have sound bytes of what was damaged since.
        let mended = |digest: &String| self.rig.reads(&digest.parse().expect("a digest"));
        self.aside.retain(|digest| !mended(digest));
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

    pub fn collect(&mut self) {
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
            let containers = self.rig.store.containers(namespace, &[]).expect("a list").into_iter().map(|c| c.id);
            assert_eq!(containers.collect::<BTreeSet<_>>(), keys(space.containers.keys().collect()), "{namespace}");
            let leases = self.rig.store.leases(namespace, &[]).expect("a list").into_iter().map(|l| l.id);
            assert_eq!(leases.collect::<BTreeSet<_>>(), keys(space.leases.keys().collect()), "leases of {namespace}");
            needed.extend(digests);
            maybe.extend(space.writes.values().filter_map(|(expected, _)| expected.clone()));
        }
        needed.retain(|digest| !self.aside.contains(digest));
        let on_disk = self.rig.blobs_on_disk();
        assert!(on_disk.is_superset(&needed), "lost: {:?}", needed.difference(&on_disk));
        let extra: BTreeSet<_> = on_disk.difference(&needed).cloned().collect();
        assert!(extra.is_subset(&maybe), "left on disk: {extra:?}");
        let trees: usize = self.spaces.iter().map(|s| s.snapshots.len()).sum();
        let unmade = self.unmade.iter().filter(|end| **end >= self.rig.seconds()).count();
        let on_disk = self.rig.trees_on_disk();
        assert!(
            (trees..=trees + unmade).contains(&on_disk),
            "{on_disk} trees, expected {trees} and at most {unmade} more"
        );
        assert!(needed.iter().all(|digest| self.rig.reads(&digest.parse().expect("a digest"))));
        assert!(
            self.aside.iter().all(|digest| !self.rig.reads(&digest.parse().expect("a digest"))),
            "damaged, given out"
        );
        let writes: usize = self.spaces.iter().map(|s| s.writes.len()).sum();
        assert!(self.rig.writes_on_disk() <= writes, "writes left on disk");
    }
}

async fn commit(rig: &Rig, scope: &orlop_metadata::Scope, blob: u8, expected: bool) -> orlop_content::Result<()> {
    if expected {
        return rig::put(&rig.store, scope, COMMITS[0], &bytes(blob)).await;
    }
    let content = rig.store.content(scope);
    let mut writer =
        content.writer(IngestOptions { reference: COMMITS[1].to_owned(), total: 0, expected: None }).await?;
    writer.truncate(0).await?;
    writer.write(bytes(blob).into()).await?;
    match writer.commit(0, None).await {
        Ok(_) | Err(orlop_content::Error::AlreadyExists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
