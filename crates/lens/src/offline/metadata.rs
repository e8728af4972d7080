//! `meta.db`: everything that has a name, by namespace.
//!
//! Buckets are `v1/NAMESPACE/KIND/…`, a bucket for each thing, with its labels in a bucket below. What could be read of a
//! namespace is read although something else of it is damaged.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use orlop_bolt::{Bucket, Db, Entry};
use orlop_graph::model::{
    BlobRow, ContainerRow, Gap, Inventory, LeaseRow, NamespaceId, NamespaceRow, RecordRow, Resource, SnapshotKind,
    SnapshotRow,
};
use orlop_oci::Digest;

use super::fields::{self, Broken, Fields, text};
use crate::convert::Interned;

/// The versions of the schema within `v1` whose buckets are read here: containerd 1.2 to 2.x.
const VERSIONS: std::ops::RangeInclusive<i64> = 2..=4;

/// What of it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) records: bool,
    /// Leases and containers.
    pub(super) holders: bool,
    pub(super) blobs: bool,
    pub(super) ingests: bool,
    /// Once there are more than so many, the rest is left out.
    pub(super) snapshots: Option<usize>,
}

impl Wanted {
    pub(super) const ALL: Self =
        Self { records: true, holders: true, blobs: true, ingests: true, snapshots: Some(usize::MAX) };
    pub(super) const NOTHING: Self =
        Self { records: false, holders: false, blobs: false, ingests: false, snapshots: None };
}

impl Default for Wanted {
    fn default() -> Self {
        Self::ALL
    }
}

/// What `meta.db` says.
#[derive(Default)]
pub(super) struct Metadata {
    wanted: Wanted,
    pub(super) inventory: Inventory,
    /// Snapshots, whose kind their snapshotters know.
    pub(super) snapshots: Vec<Named>,
    /// Writes in progress, whose progress the files of content know.
    pub(super) ingests: Vec<Ingest>,
    /// The transaction.
    pub(super) version: Option<u64>,
    texts: Interned,
}

/// A snapshot, and by what key its snapshotter knows it.
pub(super) struct Named {
    pub(super) row: SnapshotRow,
    pub(super) backend: String,
}

/// A write in progress, and by what reference the content store knows it.
pub(super) struct Ingest {
    pub(super) namespace: NamespaceId,
    pub(super) reference: Arc<str>,
    pub(super) backend: String,
    pub(super) expected: Option<Digest>,
}

/// Reads what is wanted of it.
pub(super) fn read(db: &Db<'_>, wanted: Wanted) -> Metadata {
    let mut read = Metadata { version: Some(db.meta().txid), wanted, ..Metadata::default() };
    if let Some(damaged) = db.damaged_meta() {
        read.gap("the last changes of meta.db, if there were any after what is shown", damaged);
    }
    let root = match db.root().bucket(b"v1") {
        Ok(Some(root)) => root,
        Ok(None) => return read,
        Err(error) => {
            read.gap("all that meta.db records", error);
            return read;
        }
    };
    read.schema(&root);
    for entry in root.iter() {
        match entry {
            Ok((name, Entry::Bucket(bucket))) => read.namespace(&name, &bucket),
            Ok((_, Entry::Value(_))) => {}
            Err(error) => read.gap("some namespaces with all that is in them", error),
        }
    }
    read
}

/// Where in a namespace something is.
struct Part<'a, 'db> {
    namespace: NamespaceId,
    name: &'a str,
    bucket: &'a Bucket<'db>,
}

impl Metadata {
    fn gap(&mut self, what: impl Into<String>, why: impl Display) {
        self.inventory.gaps.push(Gap { what: what.into(), why: format!("meta.db: {why}") });
    }

    fn schema(&mut self, root: &Bucket<'_>) {
        let version = Fields::of(root).and_then(|fields| fields.number("version"));
        match version {
            Ok(Some(version)) if VERSIONS.contains(&version) => {}
            Ok(version) => {
                let found = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
                let why = format!("version of the schema is {found}, those known here are 2 to 4");
                self.gap("whatever this version of containerd writes elsewhere", why);
            }
            // What cannot be read is told where the namespaces are read.
            Err(Broken::Bolt(_)) => {}
            Err(error) => self.gap("which version of the schema it is", error),
        }
    }

    fn namespace(&mut self, name: &[u8], bucket: &Bucket<'_>) {
        let name = match text("a namespace's name", name) {
            Ok(name) => name,
            Err(error) => return self.gap("a namespace with all that is in it", error),
        };
        let Ok(namespace) = NamespaceId::try_from(self.inventory.namespaces.len()) else {
            return self.gap(format!("namespace {name}"), "there are more namespaces than can be read");
        };
        self.inventory.namespaces.push(NamespaceRow { name: name.into(), ..NamespaceRow::default() });
        for entry in bucket.iter() {
            let (kind, bucket) = match entry {
                Ok((kind, Entry::Bucket(bucket))) => (kind, bucket),
                Ok(_) => continue,
                Err(error) => {
                    self.gap(format!("some kinds of things of namespace {name}"), error);
                    continue;
                }
            };
            let part = Part { namespace, name, bucket: &bucket };
            match &kind[..] {
                b"labels" => match fields::labels(&bucket) {
                    Ok(labels) => self.inventory.namespaces[usize::from(namespace)].labels = labels,
                    Err(error) => self.gap(format!("labels of namespace {name}"), error),
                },
                b"images" if self.wanted.records => self.each("image records", &part, Self::record),
                b"containers" if self.wanted.holders => self.each("containers", &part, Self::container),
                b"leases" if self.wanted.holders => self.each("leases", &part, Self::lease),
                b"content" => self.content(&part),
                b"snapshots" if self.wanted.snapshots.is_some() => self.snapshotters(&part),
                _ => {}
            }
        }
    }

    /// Reads each bucket of a bucket as one thing.
    fn each(
        &mut self,
        what: &str,
        part: &Part<'_, '_>,
        read: impl Fn(&mut Self, NamespaceId, &str, &Fields<'_, '_>) -> Result<(), Broken>,
    ) {
        self.each_until(what, part, |_| false, read);
    }

    fn each_until(
        &mut self,
        what: &str,
        part: &Part<'_, '_>,
        enough: impl Fn(&Self) -> bool,
        read: impl Fn(&mut Self, NamespaceId, &str, &Fields<'_, '_>) -> Result<(), Broken>,
    ) {
        for entry in part.bucket.iter() {
            if enough(self) {
                return;
            }
            let (key, bucket) = match entry {
                Ok((key, Entry::Bucket(bucket))) => (key, bucket),
                Ok(_) => continue,
                Err(error) => {
                    self.gap(format!("some {what} of namespace {}", part.name), error);
                    continue;
                }
            };
            let done = text("a name", &key).and_then(|key| read(self, part.namespace, key, &Fields::of(&bucket)?));
            if let Err(error) = done {
                self.gap(format!("{} of the {what} of namespace {}", shown(&key), part.name), error);
            }
        }
    }

    fn record(&mut self, namespace: NamespaceId, name: &str, fields: &Fields<'_, '_>) -> Result<(), Broken> {
        let target = fields.bucket("target")?;
        let target = target.as_ref().map(Fields::of).transpose()?;
        let target = target.ok_or(Broken::Field { name: "target", found: "nothing".into(), expected: "a bucket" })?;
        let row = RecordRow {
            namespace,
            name: name.into(),
            target: digest("target/digest", target.text("digest")?)?,
            media_type: self.texts.get(target.text("mediatype")?.to_owned()),
            size: size(target.number("size")?),
            labels: fields.labels()?,
            created: fields.time("createdat")?,
            updated: fields.time("updatedat")?,
        };
        self.inventory.records.push(row);
        Ok(())
    }

    fn container(&mut self, namespace: NamespaceId, id: &str, fields: &Fields<'_, '_>) -> Result<(), Broken> {
        let row = ContainerRow {
            namespace,
            id: id.into(),
            image: self.texts.get(fields.text("image")?.to_owned()),
            snapshotter: self.texts.get(fields.text("snapshotter")?.to_owned()),
            snapshot_key: fields.text("snapshotKey")?.into(),
            labels: fields.labels()?,
            created: fields.time("createdat")?,
        };
        self.inventory.containers.push(row);
        Ok(())
    }

    fn lease(&mut self, namespace: NamespaceId, id: &str, fields: &Fields<'_, '_>) -> Result<(), Broken> {
        let mut resources = Vec::new();
        for (kind, make) in LISTED {
            for key in fields.bucket(kind)?.as_ref().map_or_else(|| Ok(Vec::new()), keys)? {
                resources.push(make(text("a resource", &key)?));
            }
        }
        if let Some(snapshotters) = fields.bucket("snapshots")? {
            for entry in snapshotters.iter() {
                let (snapshotter, Entry::Bucket(bucket)) = entry? else { continue };
                let snapshotter = self.texts.get(text("a snapshotter", &snapshotter)?.to_owned());
                for key in keys(&bucket)? {
                    let key = text("a resource", &key)?.into();
                    resources.push(Resource::Snapshot { snapshotter: snapshotter.clone(), key });
                }
            }
        }
        let (labels, created) = (fields.labels()?, fields.time("createdat")?);
        self.inventory.leases.push(LeaseRow { namespace, id: id.into(), labels, created, resources });
        Ok(())
    }

    fn content(&mut self, part: &Part<'_, '_>) {
        let wanted = [self.wanted.blobs, self.wanted.ingests];
        let kinds = [("blob", "blobs"), ("ingests", "writes in progress")].into_iter().zip(wanted);
        for ((name, what), _) in kinds.filter(|(_, wanted)| *wanted) {
            match part.bucket.bucket(name.as_bytes()) {
                Ok(None) => {}
                Ok(Some(bucket)) => {
                    let part = Part { bucket: &bucket, ..*part };
                    if name == "blob" {
                        self.each(what, &part, Self::blob)
                    } else {
                        self.each(what, &part, Self::ingest)
                    }
                }
                Err(error) => self.gap(format!("{what} of namespace {}", part.name), error),
            }
        }
    }

    fn blob(&mut self, namespace: NamespaceId, digest: &str, fields: &Fields<'_, '_>) -> Result<(), Broken> {
        let row = BlobRow {
            namespace,
            digest: self::digest("its name", digest)?,
            size: size(fields.number("size")?),
            labels: fields.labels()?,
            created: fields.time("createdat")?,
            updated: fields.time("updatedat")?,
        };
        self.inventory.blobs.push(row);
        Ok(())
    }

    fn ingest(&mut self, namespace: NamespaceId, reference: &str, fields: &Fields<'_, '_>) -> Result<(), Broken> {
        let expected = match fields.text("expected")? {
            "" => None,
            expected => Some(digest("expected", expected)?),
        };
        let backend = match fields.text("ref")? {
            "" => return Err(Broken::Field { name: "ref", found: "nothing".into(), expected: "a reference" }),
            backend => backend.to_owned(),
        };
        self.ingests.push(Ingest { namespace, reference: reference.into(), backend, expected });
        Ok(())
    }

    /// Whether there are more snapshots than are wanted.
    fn has_enough(&self) -> bool {
        self.wanted.snapshots.is_none_or(|most| self.snapshots.len() > most)
    }

    fn snapshotters(&mut self, part: &Part<'_, '_>) {
        for entry in part.bucket.iter() {
            let (name, bucket) = match entry {
                Ok((name, Entry::Bucket(bucket))) => (name, bucket),
                Ok(_) => continue,
                Err(error) => {
                    self.gap(format!("some snapshots of namespace {}", part.name), error);
                    continue;
                }
            };
            let snapshotter = match text("a snapshotter's name", &name) {
                Ok(name) => self.texts.get(name.to_owned()),
                Err(error) => {
                    self.gap(format!("some snapshots of namespace {}", part.name), error);
                    continue;
                }
            };
            let part = Part { bucket: &bucket, ..*part };
            let what = format!("snapshots of {snapshotter}");
            self.each_until(&what, &part, Self::has_enough, |read, namespace, key, fields| {
                let row = SnapshotRow {
                    namespace,
                    snapshotter: snapshotter.clone(),
                    key: key.into(),
                    kind: SnapshotKind::Unknown,
                    parent: Some(fields.text("parent")?).filter(|parent| !parent.is_empty()).map(Arc::from),
                    labels: fields.labels()?,
                    created: fields.time("createdat")?,
                    updated: fields.time("updatedat")?,
                    usage: None,
                };
                read.snapshots.push(Named { row, backend: fields.text("name")?.to_owned() });
                Ok(())
            });
        }
    }
}

type Make = fn(&str) -> Resource;

/// What leases list in buckets of their own, but for snapshots.
const LISTED: [(&str, Make); 3] = [
    ("content", |id| match id.parse() {
        Ok(digest) => Resource::Content(digest),
        Err(_) => Resource::Other { kind: "content".into(), id: id.into() },
    }),
    ("images", |id| Resource::Image(id.into())),
    ("ingests", |id| Resource::Ingest(id.into())),
];

fn keys(bucket: &Bucket<'_>) -> Result<Vec<Bytes>, Broken> {
    Ok(bucket.iter().map(|entry| entry.map(|(key, _)| key)).collect::<Result<_, _>>()?)
}

fn digest(name: &'static str, text: &str) -> Result<Digest, Broken> {
    text.parse().map_err(|_| Broken::Field { name, found: format!("{text:?}"), expected: "a digest" })
}

/// As over the API: none is 0.
fn size(number: Option<i64>) -> u64 {
    number.and_then(|number| number.try_into().ok()).unwrap_or(0)
}

fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
