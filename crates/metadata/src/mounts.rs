//! Activations: mounts that a server made for a client, under a name, until somebody ends them or nothing keeps them.
//!
//! One is a row with a number; `ROOT/mounts/<number>/` has its mount points. As with snapshots:
//!
//! - **Activating** reserves a number by a `doomed` row that lies in the future, mounts, and lets the row of the activation
//!   take the place of the doomed one. Killed in between, the collector unmounts when the time is up.
//! - **Deactivating** puts a doomed row in place of the activation's and unmounts. What is still in use stays for the
//!   collector.
//!
//! An activation is no root. It lives by a lease, by `gc.ref.mount` labels of others, or by its own `gc.bref` labels; of its
//! labels nothing else counts, as in containerd. What is mounted does not outlive the machine: see [`Store::settle_mounts`].

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orlop_snapshot::activate::{self, Activated, Active, Wanted};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::from_nanos;
use crate::edges::{self, Edges};
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Scope, Store, labels, leases, namespaces};

/// How long activating may take; it is a matter of milliseconds, unless a device hangs.
const MAKING_NANOS: i64 = 3600 * 1_000_000_000;

/// The kind of an activation's directory among the doomed; the name is the number.
pub(crate) const DOOMED: &str = "mount";

/// Mounts that were made, and what is left to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    /// Its name: any non-empty text.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// What was mounted, in this order.
    pub active: Vec<Active>,
    /// What the client mounts.
    pub system: Vec<Wanted>,
    /// When it was made.
    pub created_at: Timestamp,
}

const COLUMNS: &str = "name, labels, active, system, created";

impl Store {
    /// Mounts what a client cannot, and keeps it under `name`; under the scope's lease, if it has one.
    ///
    /// # Errors
    /// AlreadyExists if there is such a name; otherwise as [`activate::activate`]. Then nothing is left.
    pub fn activate(
        &self,
        scope: &Scope,
        name: &str,
        mounts: &[Wanted],
        labels: Labels,
        temporary: bool,
    ) -> Result<Activation> {
        activate::needed(mounts, temporary)?;
        if name.is_empty() {
            return Err(Error::Invalid { what: "mount name", reason: "it is empty".to_owned() });
        }
        labels::validate(&labels)?;
        let labels = labels::without_empty(labels);
        let id = self.write("activate mounts", |tx| reserve(tx, scope, name))?;
        let directory = self.mount_directory(id);
        let made = self.make_mounts(&directory, mounts, temporary).and_then(|made| {
            let Activated { active, system } = made;
            let activation = Activation { name: name.to_owned(), labels, active, system, created_at: from_nanos(0) };
            self.write("activate mounts", |tx| publish(tx, scope, id, activation))
        });
        if made.is_err() {
            // The first error is the one to tell; what cannot be unmounted now the collector will.
            if let Err(error) = activate::deactivate(&directory) {
                tracing::warn!(%error, "cannot undo an activation that failed; it is tried again");
            }
            self.write("activate mounts", |tx| doom(tx, id))?;
        }
        made
    }

    fn make_mounts(&self, directory: &Path, mounts: &[Wanted], temporary: bool) -> Result<Activated> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| Error::Io { operation: "create", path: directory.to_owned(), source })?;
        let (trees, points) = (self.root().join("snapshots"), self.root().join("mounts"));
        Ok(activate::activate(mounts, temporary, directory, &[&trees, &points])?)
    }

    /// Ends an activation: the last mount goes first.
    ///
    /// # Errors
    /// FailedPrecondition if something is still in use. The name is free all the same, and a later collection unmounts.
    pub fn deactivate(&self, scope: &Scope, name: &str) -> Result<()> {
        let id = self.write("deactivate mounts", |tx| {
            let namespace = &scope.namespace;
            let (id, _) = find(tx, namespace, name)?.ok_or_else(|| not_found(name))?;
            remove(tx, namespace, name, id)?;
            tx.prepare_cached("DELETE FROM lease_resource WHERE namespace = ?1 AND kind = ?2 AND name = ?3")?
                .execute(params![namespace, edges::MOUNTS, name])?;
            Ok(id)
        })?;
        activate::deactivate(&self.mount_directory(id)).map_err(|error| busy(name, error))?;
        self.write("deactivate mounts", |tx| {
            tx.execute("DELETE FROM doomed WHERE kind = ?1 AND name = ?2", params![DOOMED, id.to_string()])?;
            Ok(())
        })
    }

    /// One activation.
    pub fn activation(&self, namespace: &str, name: &str) -> Result<Activation> {
        let found = self.read(|conn| find(conn, namespace, name))?;
        found.map(|(_, activation)| activation).ok_or_else(|| not_found(name))
    }

    /// All activations, by name.
    pub fn activations(&self, namespace: &str) -> Result<Vec<Activation>> {
        self.read(|conn| {
            let mut query =
                conn.prepare_cached(&format!("SELECT {COLUMNS} FROM mount WHERE namespace = ?1 ORDER BY name"))?;
            let rows = query.query_map([namespace], activation)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Forgets activations whose mounts are not all there any more, for the machine was started anew or somebody unmounted
    /// them; what is left of them goes at the next collection. Whoever serves the root asks for it when it starts.
    pub fn settle_mounts(&self) -> Result<()> {
        let all: Vec<(String, i64, Activation)> = self.read(|conn| {
            let mut query = conn.prepare(&format!("SELECT {COLUMNS}, namespace, id FROM mount"))?;
            let rows = query.query_map([], |row| Ok((row.get(5)?, row.get(6)?, activation(row)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let gone = |activation: &Activation| activation.active.iter().any(|a| !activate::is_mounted(&a.point));
        let lost: Vec<_> = all.into_iter().filter(|(_, _, activation)| gone(activation)).collect();
        if lost.is_empty() {
            return Ok(());
        }
        self.write("forget mounts", |tx| lost.iter().try_for_each(|(ns, id, lost)| remove(tx, ns, &lost.name, *id)))
    }

    /// Where the mount points of an activation are.
    pub(crate) fn mount_directory(&self, id: i64) -> PathBuf {
        self.root().join("mounts").join(id.to_string())
    }
}

/// Takes a number, and marks it so that its directory goes should nobody claim it.
fn reserve(tx: &Tx<'_>, scope: &Scope, name: &str) -> Result<i64> {
    namespaces::ensure(tx, &scope.namespace)?;
    leases::check_scope(tx, scope)?;
    if find(tx, &scope.namespace, name)?.is_some() {
        return Err(exists(name));
    }
    tx.execute("INSERT INTO sequence VALUES ('mount', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", [])?;
    let id: i64 = tx.query_row("SELECT value FROM sequence WHERE name = 'mount'", [], |row| row.get(0))?;
    tx.prepare_cached("INSERT INTO doomed (kind, name, after) VALUES (?1, ?2, ?3)")?.execute(params![
        DOOMED,
        id.to_string(),
        tx.now().saturating_add(MAKING_NANOS)
    ])?;
    Ok(id)
}

/// Lets the activation's row take the place of the mark.
fn publish(tx: &Tx<'_>, scope: &Scope, id: i64, made: Activation) -> Result<Activation> {
    let (namespace, name) = (&scope.namespace, &made.name);
    namespaces::ensure(tx, namespace)?;
    if find(tx, namespace, name)?.is_some() {
        return Err(exists(name));
    }
    let claimed = tx
        .prepare_cached("DELETE FROM doomed WHERE kind = ?1 AND name = ?2 AND after > ?3")?
        .execute(params![DOOMED, id.to_string(), tx.now()])?;
    if claimed == 0 {
        return Err(failed(name, "mounting took more than an hour; try again".to_owned()));
    }
    tx.prepare_cached("INSERT INTO mount VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
        namespace,
        name,
        id,
        labels::to_json(&made.labels),
        serde_json::to_string(&made.active).expect("strings are JSON"),
        serde_json::to_string(&made.system).expect("strings are JSON"),
        tx.now()
    ])?;
    leases::add(tx, scope, edges::MOUNTS, name)?;
    edges::put(tx, namespace, edges::MOUNTS, name, &Edges::of_labels(edges::MOUNTS, &made.labels))?;
    edges::suspect(tx, namespace, edges::MOUNTS, name)?;
    Ok(Activation { created_at: from_nanos(tx.now()), ..made })
}

/// Puts a doomed row in place of the activation's.
pub(crate) fn remove(tx: &Connection, namespace: &str, name: &str, id: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM mount WHERE namespace = ?1 AND name = ?2 AND id = ?3")?
        .execute(params![namespace, name, id])?;
    edges::remove(tx, namespace, edges::MOUNTS, name)?;
    doom(tx, id)
}

/// Has the collector unmount what is in a directory, from now on.
pub(crate) fn doom(tx: &Connection, id: i64) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO doomed (kind, name) VALUES (?1, ?2) ON CONFLICT (kind, name) DO UPDATE SET after = 0",
    )?
    .execute(params![DOOMED, id.to_string()])?;
    Ok(())
}

fn find(conn: &Connection, namespace: &str, name: &str) -> Result<Option<(i64, Activation)>> {
    let sql = format!("SELECT {COLUMNS}, id FROM mount WHERE namespace = ?1 AND name = ?2");
    let mut query = conn.prepare_cached(&sql)?;
    Ok(query.query_row([namespace, name], |row| Ok((row.get(5)?, activation(row)?))).optional()?)
}

fn activation(row: &Row<'_>) -> rusqlite::Result<Activation> {
    Ok(Activation {
        name: row.get(0)?,
        labels: labels::column(row, 1)?,
        active: json(row, 2)?,
        system: json(row, 3)?,
        created_at: from_nanos(row.get(4)?),
    })
}

fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let wrong = |e| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(e));
    serde_json::from_str(row.get_ref(index)?.as_str()?).map_err(wrong)
}

/// What is in use can be unmounted later; it is nobody's fault here.
fn busy(name: &str, error: orlop_snapshot::Error) -> Error {
    match &error {
        orlop_snapshot::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::ResourceBusy => {
            failed(name, format!("{error}; somebody still uses it, and a later collection unmounts it"))
        }
        _ => error.into(),
    }
}

fn not_found(name: &str) -> Error {
    Error::NotFound { kind: ObjectKind::Mount, name: name.to_owned() }
}

fn exists(name: &str) -> Error {
    Error::AlreadyExists { kind: ObjectKind::Mount, name: name.to_owned() }
}

fn failed(name: &str, reason: String) -> Error {
    Error::FailedPrecondition { kind: ObjectKind::Mount, name: name.to_owned(), reason }
}
