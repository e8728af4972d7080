//! Image records.

use std::collections::BTreeSet;

use jiff::Timestamp;
use orlop_oci::{Descriptor, Digest};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::{from_nanos, to_nanos};
use crate::edges::{self, Edges};
use crate::filter::{Filter, in_map};
use crate::history::{self, HistoryEntry, State, digest_column};
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Scope, Store, labels, leases, namespaces};

/// A name and what it points at.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Any non-empty text.
    pub name: String,
    /// A manifest or index. Of its fields media type, digest, size and annotations are kept.
    pub target: Descriptor,
    /// Labels.
    pub labels: Labels,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// One step of a [`Store::write_images`] transaction.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a handful at a time, most of them the large one")]
pub enum ImageChange {
    /// Creates the record, or updates its target and adds these labels to those it has. What is so already stays
    /// untouched, its time and history too.
    Upsert {
        /// The name.
        name: String,
        /// The new target.
        target: Descriptor,
        /// Labels to add or replace; an empty value deletes.
        labels: Labels,
    },
    /// Deletes the record if it is there.
    Delete {
        /// The name.
        name: String,
    },
}

impl ImageChange {
    /// The record that it changes.
    pub fn name(&self) -> &str {
        match self {
            Self::Upsert { name, .. } | Self::Delete { name } => name,
        }
    }
}

/// A whole record for [`Store::replace_images`].
#[derive(Debug, Clone, PartialEq)]
pub struct Replacement {
    /// The name.
    pub name: String,
    /// The target.
    pub target: Descriptor,
    /// All its labels.
    pub labels: Labels,
}

/// Left alone, SQLite goes through the namespace's records instead: they are in the order of the primary key.
pub(crate) fn of_target() -> String {
    format!("SELECT {COLUMNS} FROM image INDEXED BY image_target WHERE namespace = ?1 AND digest = ?2")
}

const COLUMNS: &str = "name, digest, media_type, size, annotations, labels, created, updated";

impl Store {
    /// One record.
    pub fn image(&self, namespace: &str, name: &str) -> Result<Image> {
        self.read(|conn| get(conn, namespace, name))?.ok_or_else(|| not_found(name))
    }

    /// All records that match any of `filters` (containerd's grammar; none: all), ordered by name.
    pub fn images(&self, namespace: &str, filters: &[String]) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        self.visit_images(namespace, filters, |image| {
            images.push(image.clone());
            true
        })?;
        Ok(images)
    }

    /// Shows `each` what [`Store::images`] gives, without holding it all at once, as long as it wants more.
    pub fn visit_images(
        &self,
        namespace: &str,
        filters: &[String],
        mut each: impl FnMut(&Image) -> bool,
    ) -> Result<()> {
        let filter = Filter::parse(filters)?;
        self.read(|conn| {
            let sql = format!("SELECT {COLUMNS} FROM image WHERE namespace = ?1 ORDER BY name");
            let mut query = conn.prepare_cached(&sql)?;
            let mut rows = query.query([namespace])?;
            let mut current = None;
            while let Some(row) = rows.next()? {
                let image = Current::read(&mut current, row)?;
                if (filter.is_trivial() || image.matches(&filter)) && !each(image) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// All records that point at any of `targets`, ordered by name. Costs what they are, not what there is.
    pub fn images_of(&self, namespace: &str, targets: &BTreeSet<Digest>) -> Result<Vec<Image>> {
        let mut images = self.read(|conn| {
            let mut query = conn.prepare_cached(&of_target())?;
            let mut images = Vec::new();
            for target in targets {
                for found in query.query_map(params![namespace, target.as_str()], image)? {
                    images.push(found?);
                }
            }
            Ok(images)
        })?;
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Those of these records that are there.
    pub fn images_named<N: AsRef<str>>(
        &self,
        namespace: &str,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Vec<Image>> {
        self.read(|conn| {
            let found = names.into_iter().filter_map(|name| get(conn, namespace, name.as_ref()).transpose());
            found.collect()
        })
    }

    /// Creates a record; its times are set here.
    pub fn create_image(&self, scope: &Scope, image: Image) -> Result<Image> {
        let image = prepared(image)?;
        self.bring_together("create image", |tx| {
            let image = image.clone();
            if get(tx, &scope.namespace, &image.name)?.is_some() {
                return Err(Error::AlreadyExists { kind: ObjectKind::Image, name: image.name.clone() });
            }
            put(tx, scope, None, Image { created_at: from_nanos(tx.now()), ..image })
        })
    }

    /// Updates a record as containerd does: an empty mask replaces everything but the creation time; `labels`,
    /// `labels.<key>` and `annotations.<key>` (the key may have dots), `target`, `annotations` replace just that.
    pub fn update_image(&self, scope: &Scope, image: Image, mask: &[String]) -> Result<Image> {
        self.bring_together("update image", |tx| {
            let old = get(tx, &scope.namespace, &image.name)?.ok_or_else(|| not_found(&image.name))?;
            let new = prepared(masked(&old, image.clone(), mask)?)?;
            put(tx, scope, Some(&old), new)
        })
    }

    /// Deletes a record; with `target`, only if it points there (else NotFound). Bytes go at the next collection.
    pub fn delete_image(&self, scope: &Scope, name: &str, target: Option<&Digest>) -> Result<Image> {
        let _loan = self.lend();
        self.write("delete image", |tx| {
            let old = get(tx, &scope.namespace, name)?.ok_or_else(|| not_found(name))?;
            if target.is_some_and(|t| *t != old.target.digest) {
                return Err(not_found(name));
            }
            delete(tx, scope, &old)?;
            Ok(old)
        })
    }

    /// Creates each record, or makes it this, labels and all; only the time of creation stays. It counts as a change even
    /// if nothing is different, as containerd's update without a mask does. One transaction.
    pub fn replace_images(&self, scope: &Scope, records: &[Replacement]) -> Result<()> {
        self.bring_together("replace images", |tx| records.iter().try_for_each(|record| replace(tx, scope, record)))
    }

    /// Applies, in one transaction, those changes that still hold, and returns the others: what was decided on records that
    /// were read after the change `seen` of the history may be `outdated` by what the namespace's history has had since then.
    /// It is asked for each change while nobody else can write.
    pub fn write_images_decided_at(
        &self,
        scope: &Scope,
        seen: i64,
        changes: Vec<ImageChange>,
        outdated: impl Fn(&ImageChange, &[HistoryEntry]) -> bool,
    ) -> Result<Vec<ImageChange>> {
        let decided = |tx: &Tx<'_>| {
            let since = history::since(tx, &scope.namespace, seen)?;
            let (left, hold): (Vec<_>, Vec<_>) = changes.iter().cloned().partition(|change| outdated(change, &since));
            apply(tx, scope, &hold)?;
            Ok(left)
        };
        if is_removal(&changes) {
            let _loan = self.lend();
            return self.write("write images", decided);
        }
        self.bring("write images", decided)
    }

    /// Applies all changes in one transaction, or none.
    pub fn write_images(&self, scope: &Scope, changes: &[ImageChange]) -> Result<()> {
        if is_removal(changes) {
            let _loan = self.lend();
            return self.write("write images", |tx| apply(tx, scope, changes));
        }
        self.bring_together("write images", |tx| apply(tx, scope, changes))
    }
}

/// Whether these changes only take records away.
fn is_removal(changes: &[ImageChange]) -> bool {
    changes.iter().all(|change| matches!(change, ImageChange::Delete { .. }))
}

/// Applies changes within a transaction.
pub(crate) fn apply(tx: &Tx<'_>, scope: &Scope, changes: &[ImageChange]) -> Result<()> {
    for change in changes {
        match change {
            ImageChange::Upsert { name, target, labels } => upsert(tx, scope, name, target, labels)?,
            ImageChange::Delete { name } => {
                if let Some(old) = get(tx, &scope.namespace, name)? {
                    delete(tx, scope, &old)?;
                }
            }
        }
    }
    Ok(())
}

fn upsert(tx: &Tx<'_>, scope: &Scope, name: &str, target: &Descriptor, added: &Labels) -> Result<()> {
    let old = get(tx, &scope.namespace, name)?;
    let mut image = old.clone().unwrap_or_else(|| Image {
        name: name.to_owned(),
        target: target.clone(),
        labels: Labels::new(),
        created_at: from_nanos(tx.now()),
        updated_at: from_nanos(tx.now()),
    });
    image.target = target.clone();
    labels::merge(&mut image.labels, added);
    let image = prepared(image)?;
    if old.as_ref() == Some(&image) {
        return Ok(());
    }
    put(tx, scope, old.as_ref(), image).map(|_| ())
}

fn replace(tx: &Tx<'_>, scope: &Scope, record: &Replacement) -> Result<()> {
    let old = get(tx, &scope.namespace, &record.name)?;
    let image = prepared(Image {
        name: record.name.clone(),
        target: record.target.clone(),
        labels: record.labels.clone(),
        created_at: old.as_ref().map_or_else(|| from_nanos(tx.now()), |old| old.created_at),
        updated_at: from_nanos(tx.now()),
    })?;
    put(tx, scope, old.as_ref(), image).map(|_| ())
}

/// One record within a transaction.
pub(crate) fn get(conn: &Connection, namespace: &str, name: &str) -> Result<Option<Image>> {
    let sql = format!("SELECT {COLUMNS} FROM image WHERE namespace = ?1 AND name = ?2");
    Ok(conn.prepare_cached(&sql)?.query_row(params![namespace, name], image).optional()?)
}

/// Writes a record that differs from `old`, with its edges, history and lease.
fn put(tx: &Tx<'_>, scope: &Scope, old: Option<&Image>, mut image: Image) -> Result<Image> {
    let namespace = &scope.namespace;
    namespaces::ensure(tx, namespace)?;
    image.updated_at = from_nanos(tx.now());
    write_row(tx, namespace, &image)?;
    if old.is_none() && image.labels.contains_key(edges::EXPIRE) {
        // A record without expiry needs no lease: it is a root itself.
        leases::add(tx, scope, edges::IMAGES, &image.name)?;
    }
    history::record(tx, scope.into(), namespace, &image.name, old.map(Image::state), Some(image.state()))?;
    Ok(image)
}

/// Writes a record's row and edges, as it is.
pub(crate) fn write_row(conn: &Connection, namespace: &str, image: &Image) -> Result<()> {
    let expires = labels::expiry(&image.labels);
    conn.prepare_cached("INSERT OR REPLACE INTO image VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?.execute(
        params![
            namespace,
            image.name,
            image.target.digest.as_str(),
            image.target.media_type,
            size_column(image.target.size),
            labels::to_json(&image.target.annotations),
            labels::to_json(&image.labels),
            expires,
            to_nanos(image.created_at),
            to_nanos(image.updated_at)
        ],
    )?;
    let stated = Edges::of_labels(edges::IMAGES, &image.labels);
    let stated = stated.to(edges::CONTENT, image.target.digest.as_str());
    edges::put(conn, namespace, edges::IMAGES, &image.name, &stated)?;
    if expires.is_some() {
        edges::suspect(conn, namespace, edges::IMAGES, &image.name)?;
    }
    Ok(())
}

/// Deletes a record within a transaction, with its edges; tells the history.
pub(crate) fn delete(tx: &Tx<'_>, scope: &Scope, old: &Image) -> Result<()> {
    let namespace = &scope.namespace;
    tx.prepare_cached("DELETE FROM image WHERE namespace = ?1 AND name = ?2")?.execute(params![namespace, old.name])?;
    edges::remove(tx, namespace, edges::IMAGES, &old.name)?;
    leases::take(tx, scope, edges::IMAGES, &old.name)?;
    history::record(tx, scope.into(), namespace, &old.name, Some(old.state()), None)
}

/// What an update makes of a record.
fn masked(old: &Image, given: Image, mask: &[String]) -> Result<Image> {
    if mask.is_empty() {
        return Ok(Image { created_at: old.created_at, ..given });
    }
    let mut new = old.clone();
    for path in mask {
        if let Some(key) = path.strip_prefix("labels.") {
            labels::by_mask(&mut new.labels, key, &given.labels)?;
        } else if let Some(key) = path.strip_prefix("annotations.") {
            let value = given.target.annotations.get(key).cloned().unwrap_or_default();
            labels::set(&mut new.target.annotations, key, value);
        } else {
            match path.as_str() {
                "labels" => new.labels = given.labels.clone(),
                "target" => new.target = given.target.clone(),
                "annotations" => new.target.annotations = given.target.annotations.clone(),
                _ => return Err(labels::unknown_field(path, "labels, target, annotations or one key of those maps")),
            }
        }
    }
    Ok(new)
}

/// Checks a record and drops what is not kept of it.
fn prepared(mut image: Image) -> Result<Image> {
    let invalid = |what, reason: &str| Err(Error::Invalid { what, reason: reason.to_owned() });
    if image.name.is_empty() {
        return invalid("image name", "it is empty");
    }
    if image.target.media_type.is_empty() {
        return invalid("image target", "its media type is empty");
    }
    if image.target.size == 0 {
        return invalid("image target", "its size must be above 0");
    }
    image.labels = labels::without_empty(image.labels);
    labels::validate(&image.labels)?;
    let kept = Descriptor::new(image.target.media_type, image.target.digest, image.target.size);
    image.target = Descriptor { annotations: image.target.annotations, ..kept };
    Ok(image)
}

fn image(row: &Row<'_>) -> rusqlite::Result<Image> {
    let target = Descriptor::new(row.get::<_, String>(2)?, digest_column(row, 1)?, size_from_column(row.get(3)?));
    Ok(Image {
        name: row.get(0)?,
        target: Descriptor { annotations: labels::column(row, 4)?, ..target },
        labels: labels::column(row, 5)?,
        created_at: from_nanos(row.get(6)?),
        updated_at: from_nanos(row.get(7)?),
    })
}

/// The record of the row that is read: what a row repeats of the one before, most of its labels and media types, is not made
/// again, and names take the place of names.
struct Current {
    image: Image,
    annotations: String,
    labels: String,
}

impl Current {
    fn read<'c>(current: &'c mut Option<Self>, row: &Row<'_>) -> rusqlite::Result<&'c Image> {
        let text = |index| row.get_ref(index)?.as_str().map_err(rusqlite::Error::from);
        let current = match current {
            Some(current) => {
                current.follow(row, text)?;
                current
            }
            None => current.insert(Self {
                image: image(row)?,
                annotations: text(4)?.to_owned(),
                labels: text(5)?.to_owned(),
            }),
        };
        Ok(&current.image)
    }

    fn follow<'r>(&mut self, row: &Row<'_>, text: impl Fn(usize) -> rusqlite::Result<&'r str>) -> rusqlite::Result<()> {
        let Image { name, target, labels, created_at, updated_at } = &mut self.image;
        text(0)?.clone_into(name);
        if text(1)? != target.digest.as_str() {
            target.digest = digest_column(row, 1)?;
        }
        text(2)?.clone_into(&mut target.media_type);
        target.size = size_from_column(row.get(3)?);
        if text(4)? != self.annotations {
            target.annotations = labels::column(row, 4)?;
            text(4)?.clone_into(&mut self.annotations);
        }
        if text(5)? != self.labels {
            *labels = labels::column(row, 5)?;
            text(5)?.clone_into(&mut self.labels);
        }
        *created_at = from_nanos(row.get(6)?);
        *updated_at = from_nanos(row.get(7)?);
        Ok(())
    }
}

impl Image {
    fn state(&self) -> State<'_> {
        State { target: &self.target, labels: &self.labels, created: None }
    }

    fn matches(&self, filter: &Filter) -> bool {
        let Self { name, target, labels, .. } = self;
        let (digest, media_type) = (target.digest.as_str(), &target.media_type);
        Fields { name, digest, media_type, labels, annotations: &target.annotations }.match_any_of(filter)
    }
}

/// The fields of a record that filters may ask for.
pub(crate) struct Fields<'a> {
    pub(crate) name: &'a str,
    pub(crate) digest: &'a str,
    pub(crate) media_type: &'a str,
    pub(crate) labels: &'a Labels,
    pub(crate) annotations: &'a Labels,
}

impl Fields<'_> {
    /// Whether any of the filters matches.
    pub(crate) fn match_any_of(&self, filter: &Filter) -> bool {
        filter.matches(|path| match path[0].as_str() {
            "name" => Some(self.name.into()),
            "target" => match path.get(1)?.as_str() {
                "digest" => Some(self.digest.into()),
                "mediatype" => Some(self.media_type.into()),
                _ => None,
            },
            "labels" => in_map(self.labels, &path[1..]),
            "annotations" => in_map(self.annotations, &path[1..]),
            _ => None,
        })
    }
}

fn not_found(name: &str) -> Error {
    Error::NotFound { kind: ObjectKind::Image, name: name.to_owned() }
}

/// SQLite's integers are signed: a size above 8 EiB, which only a lying descriptor has, is stored as that.
pub(crate) fn size_column(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The opposite of [`size_column`].
pub(crate) fn size_from_column(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}
