//! What can happen to a root, and the few names it happens to.

use orlop_metadata::{Labels, Resource, ResourceKind};

use crate::rig::{self, DRIVER, at, digest};

pub const NAMESPACES: [&str; 2] = ["one", "two"];

/// Few of each, so that they meet.
pub const BLOBS: u8 = 5;
pub const NAMES: u8 = 3;
pub const LEASES: u8 = 2;

#[derive(Debug, Clone)]
pub enum Op {
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
    CreateContainer {
        id: u8,
        snapshot: Option<u8>,
        labels: Vec<Label>,
    },
    LabelContainer {
        id: u8,
        labels: Vec<Label>,
    },
    DeleteContainer {
        id: u8,
    },
    /// One more step of a pull that other operations interrupt.
    Pull {
        image: u8,
    },
    /// Snapshot and image, made unless they are there, and labelled: this one was used so many minutes ago, that one keeps
    /// it within, or not within, so many.
    Use {
        name: u8,
        ago: i64,
        newer: bool,
        minutes: u8,
    },
    Advance {
        minutes: i16,
    },
    /// Into the trash; with the record of a second name, if there is one.
    Remove {
        name: u8,
        other: Option<u8>,
    },
    /// Says what would go if these records went first: a bit each.
    PlanWithout {
        names: u8,
    },
    Undo,
    EmptyTrash {
        all: bool,
    },
    Collect,
    CollectFull,
    Reopen,
    /// The process dies at this step of an operation.
    Crash {
        steps: u8,
        op: Box<Op>,
    },
    /// The disk changes the bytes of a blob, cuts them short or loses them, and a scrub finds it.
    Rot {
        blob: u8,
        way: u8,
    },
}

/// A label that matters to collection, or almost.
#[derive(Debug, Clone)]
pub enum Label {
    Root,
    Expire(u8),
    RefContent(u8, u8),
    RefImage(u8),
    RefSnapshot(u8, bool),
    BackContent(u8, bool),
    BackImage(u8),
    BackSnapshot(u8),
    BackContainer(u8),
    /// Looks like one, but is none.
    Other(u8, u8),
    /// For a snapshot, as long as it was used within, or not within, so many minutes.
    Condition {
        way: u8,
        newer: bool,
        minutes: u8,
        name: u8,
    },
    /// When a snapshot was used, in minutes from the start.
    Used {
        more: bool,
        minutes: i64,
    },
}

pub fn bytes(blob: u8) -> Vec<u8> {
    format!("blob {blob}").into_bytes()
}

pub fn name_of(blob: u8) -> String {
    digest(&bytes(blob)).to_string()
}

pub fn labels(list: &[Label]) -> Labels {
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
        Label::BackContainer(id) => ("bref.container".to_owned(), container_name(id)),
        Label::Other(0, blob) => ("ref.contents".to_owned(), name_of(blob)),
        Label::Other(1, blob) => ("ref.snapshot.other".to_owned(), snapshot_name(blob)),
        Label::Other(_, blob) => ("ref".to_owned(), name_of(blob)),
        Label::Condition { way, newer, minutes, name } => condition(way, newer, minutes, name),
        Label::Used { more: false, minutes } => ("cond.value-usedat".to_owned(), at(rig::START + minutes * 60)),
        Label::Used { more: true, minutes } => ("cond.value-usedat.2".to_owned(), at(rig::START + minutes * 60)),
    };
    list.iter().map(pair).map(|(key, value)| (format!("{prefix}{key}"), value)).collect()
}

/// Most ways are good, some of them with something that is none; the last two say nothing.
fn condition(way: u8, newer: bool, minutes: u8, name: u8) -> (String, String) {
    let (operator, key) = (if newer { '<' } else { '>' }, snapshot_name(name));
    let one = format!("usedat{operator}{minutes}m");
    match way {
        0 => (format!("cond.snapshot.{DRIVER}"), format!("{one}|{key}")),
        1 => (format!("cond.snapshot/{DRIVER}/extra"), format!("usedat<=9m,other<9m,{one}|{key}")),
        2 => (format!("cond.snapshot.{DRIVER}"), format!("usedat<3m,{one}|{key}")),
        3 => ("cond.snapshot.other".to_owned(), format!("{one}|{key}")),
        _ => (format!("cond.snapshot.{DRIVER}"), one),
    }
}

pub fn image_name(name: u8) -> String {
    format!("image {name}")
}

pub fn snapshot_name(name: u8) -> String {
    format!("snapshot {name}")
}

pub fn container_name(id: u8) -> String {
    format!("container-{id}")
}

pub fn write_name(reference: u8) -> String {
    format!("write {reference}")
}

pub fn lease_name(lease: u8) -> String {
    format!("lease {lease}")
}

pub fn resource(kind: u8, name: u8) -> Resource {
    match kind % 4 {
        0 => Resource { kind: ResourceKind::Content, name: name_of(name) },
        1 => Resource { kind: ResourceKind::Images, name: image_name(name % NAMES) },
        2 => Resource { kind: ResourceKind::Ingests, name: write_name(name % NAMES) },
        _ => Resource { kind: ResourceKind::Snapshots(DRIVER.to_owned()), name: snapshot_name(name) },
    }
}
