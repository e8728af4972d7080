//! Containers as records: what they are made of, not whether they run. They are kept for clients that make containers
//! elsewhere, and because a container keeps what it stands on: it is a root of garbage collection, which holds its
//! snapshot and whatever its `gc.ref` labels name. The image it names it does not hold, as in containerd.

use std::collections::BTreeMap;

use jiff::Timestamp;
use orlop_oci::Digest;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::changes::Change;
use crate::db::{from_nanos, to_nanos};
use crate::edges::{self, Edges};
use crate::filter::{Filter, in_map};
use crate::history::optional_digest;
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Scope, Store, labels, namespaces, validate_identifier};

/// A message of a type that only clients know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypedBytes {
    /// Which type.
    pub type_url: String,
    /// The encoded message.
    pub value: Vec<u8>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name: containerd's identifier rule.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// The name of an image record, for information.
    pub image: String,
    /// What runs it.
    pub runtime: String,
    /// What the runtime is told.
    pub runtime_options: Option<TypedBytes>,
    /// What is run, as a rule an OCI runtime specification. May be missing, as in containerd 2; 1.6 asks for one.
    pub spec: Option<TypedBytes>,
    /// The driver of its snapshot; may be empty.
    pub snapshotter: String,
    /// The key of its snapshot; may be empty.
    pub snapshot_key: String,
    /// The sandbox it belongs to; may be empty.
    pub sandbox: String,
    /// What clients have added.
    pub extensions: BTreeMap<String, TypedBytes>,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What a container stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerBase {
    /// The container's ID.
    pub container: String,
    /// The key of the committed snapshot that its own was prepared on: of an image, the chain ID of its top layer.
    pub snapshot: String,
    /// What the name of its image pointed at when the container was made, if there was such a record.
    pub target: Option<Digest>,
}

const COLUMNS: &str = "id, labels, image, runtime, snapshotter, snapshot_key, sandbox, created, updated";

/// Fields of `container_message`.
const SPEC: &str = "spec";
const OPTIONS: &str = "runtime.options";
const EXTENSION: &str = "extensions.";

/// What an update without a mask changes.
const MUTABLE: [&str; 5] = ["labels", "spec", "extensions", "image", "snapshotkey"];

impl Store {
    /// One container.
    pub fn container(&self, namespace: &str, id: &str) -> Result<Container> {
        self.read(|conn| get(conn, namespace, id))?.ok_or_else(|| not_found(id))
    }

    /// All containers that match any of `filters` (`id`, `image`, `runtime.name`, `labels.<key>`; none: all), by ID.
    pub fn containers(&self, namespace: &str, filters: &[String]) -> Result<Vec<Container>> {
        let filter = Filter::parse(filters)?;
        self.read(|conn| {
            let sql = format!("SELECT {COLUMNS} FROM container WHERE namespace = ?1 ORDER BY id");
            let mut query = conn.prepare_cached(&sql)?;
            let mut rows = query.query([namespace])?;
            let mut containers = Vec::new();
            while let Some(row) = rows.next()? {
                let mut container = container(row)?;
                if filter.is_trivial() || container.matches(&filter) {
                    add_messages(conn, namespace, &mut container)?;
                    containers.push(container);
                }
            }
            Ok(containers)
        })
    }

    /// The containers that stand on a committed snapshot, by ID. What the image's name meant when a container was made is in
    /// the history, whatever became of the name.
    pub fn container_bases(&self, namespace: &str) -> Result<Vec<ContainerBase>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT c.id, p.name,
                        (SELECT h.new FROM history h WHERE h.namespace = c.namespace AND h.name = c.image AND h.at < c.created
                         ORDER BY h.seq DESC LIMIT 1)
                 FROM container c
                 JOIN snapshot s ON s.namespace = c.namespace AND s.driver = c.snapshotter AND s.name = c.snapshot_key
                 JOIN snapshot p ON p.id = s.parent WHERE c.namespace = ?1 ORDER BY c.id",
            )?;
            let base = |row: &Row<'_>| {
                Ok(ContainerBase { container: row.get(0)?, snapshot: row.get(1)?, target: optional_digest(row, 2)? })
            };
            let rows = query.query_map([namespace], base)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Creates a container; its times are set here.
    pub fn create_container(&self, scope: &Scope, container: Container) -> Result<Container> {
        let container = prepared(container)?;
        self.bring_together("create container", |tx| {
            let container = container.clone();
            if get(tx, &scope.namespace, &container.id)?.is_some() {
                return Err(Error::AlreadyExists { kind: ObjectKind::Container, name: container.id.clone() });
            }
            let made = put(tx, scope, Container { created_at: from_nanos(tx.now()), ..container })?;
            let (id, image, runtime) = (made.id.clone(), made.image.clone(), made.runtime.clone());
            let options = made.runtime_options.clone();
            tx.tell(&scope.namespace, Change::ContainerCreate { id, image, runtime, options });
            Ok(made)
        })
    }

    /// Updates a container as containerd does: an empty mask replaces labels, spec, extensions, image and snapshot key,
    /// and refuses another snapshotter or runtime; a mask may name those fields (`snapshotkey` is spelled so),
    /// `labels.<key>` and `extensions.<key>`.
    pub fn update_container(&self, scope: &Scope, container: Container, mask: &[String]) -> Result<Container> {
        if container.id.is_empty() {
            return Err(invalid("container", "an update needs its ID"));
        }
        self.bring_together("update container", |tx| {
            let old = get(tx, &scope.namespace, &container.id)?.ok_or_else(|| not_found(&container.id))?;
            let updated = put(tx, scope, prepared(masked(old, container.clone(), mask)?)?)?;
            let (id, image, labels) = (updated.id.clone(), updated.image.clone(), updated.labels.clone());
            let snapshot_key = updated.snapshot_key.clone();
            tx.tell(&scope.namespace, Change::ContainerUpdate { id, image, labels, snapshot_key });
            Ok(updated)
        })
    }

    /// Deletes a container and gives back what it was. What only it kept goes at the next collection.
    pub fn delete_container(&self, scope: &Scope, id: &str) -> Result<Container> {
        let _loan = self.lend();
        self.write("delete container", |tx| {
            let namespace = &scope.namespace;
            let gone = get(tx, namespace, id)?.ok_or_else(|| not_found(id))?;
            tx.prepare_cached("DELETE FROM container WHERE namespace = ?1 AND id = ?2")?
                .execute(params![namespace, id])?;
            drop_messages(tx, namespace, id)?;
            edges::remove(tx, namespace, edges::CONTAINERS, id)?;
            tx.tell(namespace, Change::ContainerDelete { id: id.to_owned() });
            Ok(gone)
        })
    }
}

fn get(conn: &Connection, namespace: &str, id: &str) -> Result<Option<Container>> {
    let sql = format!("SELECT {COLUMNS} FROM container WHERE namespace = ?1 AND id = ?2");
    let found = conn.prepare_cached(&sql)?.query_row(params![namespace, id], container).optional()?;
    found
        .map(|mut container| {
            add_messages(conn, namespace, &mut container)?;
            Ok(container)
        })
        .transpose()
}

fn add_messages(conn: &Connection, namespace: &str, container: &mut Container) -> Result<()> {
    let mut query = conn.prepare_cached(
        "SELECT field, type_url, value FROM container_message WHERE namespace = ?1 AND container = ?2",
    )?;
    let mut rows = query.query(params![namespace, container.id])?;
    while let Some(row) = rows.next()? {
        let (field, message) = (row.get_ref(0)?, TypedBytes { type_url: row.get(1)?, value: row.get(2)? });
        match field.as_str().unwrap_or_default() {
            SPEC => container.spec = Some(message),
            OPTIONS => container.runtime_options = Some(message),
            field => {
                let key = field.strip_prefix(EXTENSION).unwrap_or(field).to_owned();
                container.extensions.insert(key, message);
            }
        }
    }
    Ok(())
}

/// Writes a container, with its edges.
fn put(tx: &Tx<'_>, scope: &Scope, mut container: Container) -> Result<Container> {
    let namespace = &scope.namespace;
    namespaces::ensure(tx, namespace)?;
    container.updated_at = from_nanos(tx.now());
    tx.prepare_cached("INSERT OR REPLACE INTO container VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?.execute(
        params![
            namespace,
            container.id,
            labels::to_json(&container.labels),
            container.image,
            container.runtime,
            container.snapshotter,
            container.snapshot_key,
            container.sandbox,
            to_nanos(container.created_at),
            tx.now()
        ],
    )?;
    drop_messages(tx, namespace, &container.id)?;
    put_message(tx, namespace, &container.id, SPEC, container.spec.as_ref())?;
    put_message(tx, namespace, &container.id, OPTIONS, container.runtime_options.as_ref())?;
    for (key, extension) in &container.extensions {
        put_message(tx, namespace, &container.id, &format!("{EXTENSION}{key}"), Some(extension))?;
    }
    edges::put(tx, namespace, edges::CONTAINERS, &container.id, &stated(&container))?;
    Ok(container)
}

fn stated(container: &Container) -> Edges {
    let edges = Edges::of_labels(edges::CONTAINERS, &container.labels);
    if container.snapshotter.is_empty() || container.snapshot_key.is_empty() {
        return edges;
    }
    edges.to(&edges::snapshots(&container.snapshotter), &container.snapshot_key)
}

fn put_message(tx: &Tx<'_>, namespace: &str, id: &str, field: &str, message: Option<&TypedBytes>) -> Result<()> {
    let Some(message) = message else { return Ok(()) };
    tx.prepare_cached("INSERT INTO container_message VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        namespace,
        id,
        field,
        message.type_url,
        message.value
    ])?;
    Ok(())
}

fn drop_messages(tx: &Tx<'_>, namespace: &str, id: &str) -> Result<()> {
    tx.prepare_cached("DELETE FROM container_message WHERE namespace = ?1 AND container = ?2")?
        .execute(params![namespace, id])?;
    Ok(())
}

/// What an update makes of a container.
fn masked(old: Container, given: Container, mask: &[String]) -> Result<Container> {
    let mut paths: Vec<&str> = mask.iter().map(String::as_str).collect();
    if paths.is_empty() {
        if given.snapshotter != old.snapshotter {
            return Err(fixed("snapshotter", &old.snapshotter, &given.snapshotter));
        }
        if given.runtime != old.runtime {
            return Err(fixed("runtime name", &old.runtime, &given.runtime));
        }
        paths.extend(MUTABLE);
    }
    let mut new = old;
    for path in paths {
        if let Some(key) = path.strip_prefix("labels.") {
            labels::by_mask(&mut new.labels, key, &given.labels)?;
        } else if path == "extensions." {
            return Err(labels::unknown_field(path, "extensions.<key> with a key"));
        } else if let Some(key) = path.strip_prefix("extensions.") {
            match given.extensions.get(key) {
                Some(extension) => drop(new.extensions.insert(key.to_owned(), extension.clone())),
                None => drop(new.extensions.remove(key)),
            }
        } else {
            match path {
                "labels" => new.labels = given.labels.clone(),
                "spec" => new.spec = given.spec.clone(),
                "extensions" => new.extensions = given.extensions.clone(),
                "image" => new.image = given.image.clone(),
                "snapshotkey" => new.snapshot_key = given.snapshot_key.clone(),
                _ => {
                    let allowed = "labels, spec, extensions, image, snapshotkey or one key of labels or extensions";
                    return Err(labels::unknown_field(path, allowed));
                }
            }
        }
    }
    Ok(new)
}

fn fixed(field: &str, old: &str, new: &str) -> Error {
    let reason = format!("its {field} is {old:?} and cannot become {new:?}: delete the container and make another");
    Error::Invalid { what: "container", reason }
}

fn invalid(what: &'static str, reason: &str) -> Error {
    Error::Invalid { what, reason: reason.to_owned() }
}

/// Checks a container and drops labels that say nothing.
fn prepared(mut container: Container) -> Result<Container> {
    validate_identifier("container ID", &container.id)?;
    if container.extensions.contains_key("") {
        return Err(invalid("container", "an extension has no name"));
    }
    if container.runtime.is_empty() {
        return Err(invalid("container", "the runtime's name is required"));
    }
    if container.snapshotter.is_empty() && !container.snapshot_key.is_empty() {
        return Err(invalid("container", "a snapshot key needs the snapshotter that it is of"));
    }
    container.labels = labels::without_empty(container.labels);
    labels::validate(&container.labels)?;
    Ok(container)
}

fn container(row: &Row<'_>) -> rusqlite::Result<Container> {
    Ok(Container {
        id: row.get(0)?,
        labels: labels::column(row, 1)?,
        image: row.get(2)?,
        runtime: row.get(3)?,
        runtime_options: None,
        spec: None,
        snapshotter: row.get(4)?,
        snapshot_key: row.get(5)?,
        sandbox: row.get(6)?,
        extensions: BTreeMap::new(),
        created_at: from_nanos(row.get(7)?),
        updated_at: from_nanos(row.get(8)?),
    })
}

impl Container {
    /// As in containerd, an empty field is not there.
    fn matches(&self, filter: &Filter) -> bool {
        let present = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned().into());
        filter.matches(|path| match (path[0].as_str(), path.get(1).map(String::as_str)) {
            ("id", _) => present(&self.id),
            ("image", _) => present(&self.image),
            ("runtime", Some("name")) => present(&self.runtime),
            ("labels", _) => in_map(&self.labels, &path[1..]),
            _ => None,
        })
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound { kind: ObjectKind::Container, name: id.to_owned() }
}
