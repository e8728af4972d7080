//! Activations: mounts that a server made for a client, under a name, until somebody ends them or nothing keeps them.
//!
//! One is a row with a number; `ROOT/mounts/<number>/` has its mount points. As with snapshots:
//!
//! - **Activating** reserves a number by a `doomed` row that lies in the future, mounts, and lets the row of the activation
//!   take the place of the doomed one. Meanwhile the directory is locked (flock). Killed in between, the collector unmounts
//!   when the time is up, or when somebody who serves the root anew finds that nobody holds the lock.
//! - **Deactivating** puts a doomed row in place of the activation's and unmounts. What is still in use stays for the
//!   collector.
//!
//! An activation is no root. It lives by a lease, by `gc.ref.mount` labels of others, or by its own `gc.bref` labels; of its
//! labels nothing else counts, as in containerd. What is mounted does not outlive the machine: see [`Store::settle_mounts`].

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orlop_snapshot::activate::{self, Activated, Active, Wanted};
use rusqlite::{Connection, OptionalExtension, Row, params};
use rustix::fs::FlockOperation;

use crate::db::{from_nanos, unreadable};
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
        let id = self.bring("activate mounts", |tx| reserve(tx, scope, name))?;
        let directory = self.mount_directory(id);
        let made = self.make_mounts(&directory, mounts, temporary).and_then(|(made, _making)| {
            let Activated { active, system } = made;
            let activation = Activation { name: name.to_owned(), labels, active, system, created_at: from_nanos(0) };
            self.bring("activate mounts", |tx| publish(tx, scope, id, activation.clone()))
        });
        if made.is_err() {
            self.take_back(id);
        }
        made
    }

    /// Takes back what of an activation was mounted. What fails is logged: the first error is the one to tell, and the
    /// collector tries again.
    fn take_back(&self, id: i64) {
        let undone = activate::abandon(&self.mount_directory(id));
        if let Err(error) = &undone {
            tracing::warn!(%error, "cannot undo an activation that failed; it is tried again");
        }
        let noted = self.write("activate mounts", |tx| if undone.is_ok() { forget(tx, id) } else { doom(tx, id) });
        if let Err(error) = noted {
            tracing::warn!(%error, "cannot note that an activation failed; in an hour it is found out");
        }
    }

    /// The mounts, and the lock that says that somebody is making them.
    fn make_mounts(&self, directory: &Path, mounts: &[Wanted], temporary: bool) -> Result<(Activated, File)> {
        let io = |operation| move |source| Error::Io { operation, path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io("create"))?;
        let making = File::open(directory).map_err(io("open"))?;
        rustix::fs::flock(&making, FlockOperation::NonBlockingLockExclusive).map_err(|e| io("lock")(e.into()))?;
        let (trees, points) = (self.root().join("snapshots"), self.root().join("mounts"));
        Ok((activate::activate(mounts, temporary, directory, &[&trees, &points])?, making))
    }

    /// Ends an activation: the last mount goes first.
    ///
    /// # Errors
    /// FailedPrecondition if something is still in use. The name is free all the same, and a later collection unmounts.
    pub fn deactivate(&self, scope: &Scope, name: &str) -> Result<()> {
        let _loan = self.lend();
        let id = self.write("deactivate mounts", |tx| {
            let namespace = &scope.namespace;
            let (id, _) = find(tx, namespace, name)?.ok_or_else(|| not_found(name))?;
            remove(tx, namespace, name, id)?;
            tx.prepare_cached("DELETE FROM lease_resource WHERE namespace = ?1 AND kind = ?2 AND name = ?3")?
                .execute(params![namespace, edges::MOUNTS, name])?;
            Ok(id)
        })?;
        activate::deactivate(&self.mount_directory(id)).map_err(|error| busy(name, error))?;
        self.write("deactivate mounts", |tx| forget(tx, id))
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
    /// them, and those that a process was making when it was killed; what is left of them goes at the next collection. Whoever
    /// serves the root asks for it when it starts.
    pub fn settle_mounts(&self) -> Result<()> {
        self.give_up_unfinished()?;
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

    fn give_up_unfinished(&self) -> Result<()> {
        let begun: Vec<i64> = self.read(|conn| {
            let mut query = conn.prepare("SELECT CAST(name AS INTEGER) FROM doomed WHERE kind = ?1 AND after > 0")?;
            let rows = query.query_map([DOOMED], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let given_up: Vec<i64> = begun.into_iter().filter(|id| !is_making(&self.mount_directory(*id))).collect();
        if given_up.is_empty() {
            return Ok(());
        }
        self.write("give up mounts", |tx| given_up.iter().try_for_each(|id| doom_unfinished(tx, *id)))
    }

    /// Where the mount points of an activation are.
    pub(crate) fn mount_directory(&self, id: i64) -> PathBuf {
        self.root().join("mounts").join(id.to_string())
    }
}

/// Whether a process holds the lock of an activation that is being made. One that has only its number does not yet: should it
/// be alive, it finds its number taken away, and undoes what it did.
fn is_making(directory: &Path) -> bool {
    let Ok(directory) = File::open(directory) else { return false };
    matches!(
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
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
        let reason = "mounting took more than an hour, or another process took the root over meanwhile; try again";
        return Err(failed(name, reason.to_owned()));
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

/// The same for one that was being made, unless it is complete or has gone meanwhile.
fn doom_unfinished(tx: &Connection, id: i64) -> Result<()> {
    tx.prepare_cached("UPDATE doomed SET after = 0 WHERE kind = ?1 AND name = ?2")?
        .execute(params![DOOMED, id.to_string()])?;
    Ok(())
}

/// Nothing of it is left.
fn forget(tx: &Connection, id: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM doomed WHERE kind = ?1 AND name = ?2")?.execute(params![DOOMED, id.to_string()])?;
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
    serde_json::from_str(row.get_ref(index)?.as_str()?).map_err(|e| unreadable(index, e))
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
