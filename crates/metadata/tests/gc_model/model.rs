//! What containerd's rules keep, computed the plainest way.

use std::collections::{BTreeMap, BTreeSet};

use orlop_metadata::{Labels, Resource, ResourceKind};

use crate::ops::lease_name;
use crate::rig::DRIVER;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Blob(String),
    Image(String),
    Write(String),
    Snapshot(String),
    Container(String),
}

#[derive(Debug, Clone, Default)]
pub struct Space {
    pub images: BTreeMap<String, (String, Labels)>,
    pub blobs: BTreeMap<String, Labels>,
    pub writes: BTreeMap<String, (Option<String>, Option<i64>)>,
    pub leases: BTreeMap<String, (Labels, BTreeSet<Object>)>,
    pub snapshots: BTreeMap<String, (Option<String>, Labels)>,
    /// Each with its snapshot.
    pub containers: BTreeMap<String, (Option<String>, Labels)>,
}

pub fn after<'a>(key: &'a str, word: &str) -> Option<&'a str> {
    key.strip_prefix("containerd.io/gc.")?.strip_prefix(word)
}

pub fn object_of(kind: &str, value: &str) -> Option<Object> {
    let named =
        |word: &str| kind == word || kind.starts_with(&format!("{word}.")) || kind.starts_with(&format!("{word}/"));
    if let Some(driver) = kind.strip_prefix("snapshot.") {
        return (driver.split('/').next() == Some(DRIVER)).then(|| Object::Snapshot(value.to_owned()));
    }
    if named("content") {
        return Some(Object::Blob(value.to_owned()));
    }
    if named("container") {
        return Some(Object::Container(value.to_owned()));
    }
    named("image").then(|| Object::Image(value.to_owned()))
}

pub fn expired(labels: &Labels, now: i64) -> bool {
    let end = labels.get("containerd.io/gc.expire").and_then(|v| v.parse::<jiff::Timestamp>().ok());
    end.is_some_and(|end| end.as_second() < now)
}

/// When labels say that a snapshot was used, in seconds.
fn uses(labels: &Labels) -> impl Iterator<Item = i64> {
    let values = labels.iter().filter(|(key, _)| after(key, "cond.value-usedat").is_some());
    values.map(|(_, value)| value.parse::<jiff::Timestamp>().expect("a time").as_second())
}

/// Whether one condition holds so many seconds after a use.
fn holds(condition: &str, since: i64) -> bool {
    let minutes = |text: &str| text.strip_suffix('m').and_then(|n| n.parse::<i64>().ok());
    let newer = condition.strip_prefix("usedat<").and_then(minutes);
    let older = condition.strip_prefix("usedat>").and_then(minutes);
    newer.is_some_and(|minutes| since < minutes * 60) || older.is_some_and(|minutes| since > minutes * 60)
}

impl Space {
    /// Every object with its labels.
    pub fn labelled(&self) -> Vec<(Object, &Labels)> {
        let images = self.images.iter().map(|(name, (_, labels))| (Object::Image(name.clone()), labels));
        let blobs = self.blobs.iter().map(|(name, labels)| (Object::Blob(name.clone()), labels));
        let snapshots = self.snapshots.iter().map(|(name, (_, labels))| (Object::Snapshot(name.clone()), labels));
        let containers = self.containers.iter().map(|(id, (_, labels))| (Object::Container(id.clone()), labels));
        images.chain(blobs).chain(snapshots).chain(containers).collect()
    }

    /// Everything that is kept, whether it exists or not.
    pub fn kept(&self, now: i64) -> BTreeSet<Object> {
        let mut kept = self.reach(self.strong_roots(now), true, now);
        kept.extend(self.reach(self.flat_roots(now), false, now));
        kept
    }

    pub fn strong_roots(&self, now: i64) -> BTreeSet<Object> {
        let mut roots = BTreeSet::new();
        for (name, (_, labels)) in &self.images {
            if !expired(labels, now) {
                roots.insert(Object::Image(name.clone()));
            }
        }
        roots.extend(self.containers.keys().cloned().map(Object::Container));
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

    pub fn flat_roots(&self, now: i64) -> BTreeSet<Object> {
        let flat = |labels: &Labels| !expired(labels, now) && labels.contains_key("containerd.io/gc.flat");
        self.leases.values().filter(|(labels, _)| flat(labels)).flat_map(|(_, held)| held.iter().cloned()).collect()
    }

    pub fn reach(&self, roots: BTreeSet<Object>, by_labels: bool, now: i64) -> BTreeSet<Object> {
        let mut reached = roots;
        loop {
            let more: BTreeSet<Object> = reached
                .iter()
                .flat_map(|object| self.next(object, by_labels, now))
                .filter(|object| !reached.contains(object))
                .collect();
            if more.is_empty() {
                return reached;
            }
            reached.extend(more);
        }
    }

    pub fn next(&self, object: &Object, by_labels: bool, now: i64) -> Vec<Object> {
        let mut next = Vec::new();
        match object {
            Object::Image(name) => next.extend(self.images.get(name).map(|(target, _)| Object::Blob(target.clone()))),
            Object::Write(name) => {
                next.extend(self.writes.get(name).and_then(|(digest, _)| digest.clone()).map(Object::Blob));
            }
            Object::Snapshot(name) => {
                next.extend(self.snapshots.get(name).and_then(|(parent, _)| parent.clone()).map(Object::Snapshot));
            }
            Object::Container(id) => {
                next.extend(self.containers.get(id).and_then(|(key, _)| key.clone()).map(Object::Snapshot));
            }
            Object::Blob(_) => {}
        }
        if by_labels {
            next.extend(self.conditional(object, now));
            for (owner, labels) in self.labelled() {
                for (key, value) in labels {
                    if owner == *object {
                        let to = after(key, "ref.").and_then(|kind| object_of(kind, value));
                        // Nothing can keep a container, which goes only when it is deleted.
                        next.extend(to.filter(|to| !matches!(to, Object::Container(_))));
                    }
                    if after(key, "bref.").and_then(|kind| object_of(kind, value)).as_ref() == Some(object) {
                        next.push(owner.clone());
                    }
                }
            }
        }
        next
    }

    /// The snapshots that conditions of an image or blob keep now.
    pub fn conditional(&self, object: &Object, now: i64) -> Vec<Object> {
        let labels = match object {
            Object::Image(name) => self.images.get(name).map(|(_, labels)| labels),
            Object::Blob(name) => self.blobs.get(name),
            _ => None,
        };
        let mut kept = Vec::new();
        for (key, value) in labels.into_iter().flatten() {
            let driver = after(key, "cond.snapshot").map(|rest| rest.trim_start_matches(['.', '/']));
            let (Some(driver), Some((conditions, key))) = (driver, value.split_once('|')) else { continue };
            let Some((_, labels)) = self.snapshots.get(key).filter(|_| driver.split('/').next() == Some(DRIVER)) else {
                continue;
            };
            if conditions.split(',').any(|condition| uses(labels).any(|used| holds(condition, now - used))) {
                kept.push(Object::Snapshot(key.to_owned()));
            }
        }
        kept
    }

    pub fn sweep(&mut self, now: i64) {
        let kept = self.kept(now);
        self.images.retain(|name, _| kept.contains(&Object::Image(name.clone())));
        self.blobs.retain(|name, _| kept.contains(&Object::Blob(name.clone())));
        self.writes.retain(|name, _| kept.contains(&Object::Write(name.clone())));
        self.snapshots.retain(|name, _| kept.contains(&Object::Snapshot(name.clone())));
        self.leases.retain(|_, (labels, _)| !expired(labels, now));
    }

    pub fn hold(&mut self, lease: Option<u8>, object: Object) {
        if let Some((_, held)) = lease.and_then(|lease| self.leases.get_mut(&lease_name(lease))) {
            held.insert(object);
        }
    }

    pub fn drop_hold(&mut self, lease: Option<u8>, object: &Object) {
        if let Some((_, held)) = lease.and_then(|lease| self.leases.get_mut(&lease_name(lease))) {
            held.remove(object);
        }
    }
}

pub fn object(resource: &Resource) -> Object {
    let name = resource.name.clone();
    match resource.kind {
        ResourceKind::Content => Object::Blob(name),
        ResourceKind::Images => Object::Image(name),
        ResourceKind::Ingests => Object::Write(name),
        ResourceKind::Snapshots(_) => Object::Snapshot(name),
    }
}
