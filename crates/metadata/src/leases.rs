//! Leases: what keeps objects while nothing else does yet.
//!
//! A lease that has expired counts for nothing and goes at the next collection; until then it can be used and listed.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use orlop_oci::Digest;
use rand::RngExt;
use rusqlite::{Connection, params};

use crate::db::from_nanos;
use crate::filter::{Filter, in_map};
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Scope, Store, content, edges, labels, namespaces};

/// A lease. `containerd.io/gc.expire` and `containerd.io/gc.flat` among its labels have containerd's meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What kind of object a lease holds. Written and parsed as containerd writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// `content`.
    Content,
    /// `ingests`.
    Ingests,
    /// `images`.
    Images,
    /// `snapshots/<driver>`.
    Snapshots(String),
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content => f.write_str(edges::CONTENT),
            Self::Ingests => f.write_str(edges::INGESTS),
            Self::Images => f.write_str(edges::IMAGES),
            Self::Snapshots(driver) => f.write_str(&edges::snapshots(driver)),
        }
    }
}

impl FromStr for ResourceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('/') {
            None if text == edges::CONTENT => Ok(Self::Content),
            None if text == edges::INGESTS => Ok(Self::Ingests),
            None if text == edges::IMAGES => Ok(Self::Images),
            Some(("snapshots", driver)) if !driver.is_empty() && !driver.contains('/') => {
                Ok(Self::Snapshots(driver.to_owned()))
            }
            _ => Err(Error::Invalid {
                what: "resource type",
                reason: format!("{text:?}; expected content, ingests, images or snapshots/<snapshotter>"),
            }),
        }
    }
}

/// An object that a lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// Digest, ref, name or key.
    pub name: String,
}

impl Store {
    /// Makes a lease; `id` empty: one is chosen.
    pub fn create_lease(&self, namespace: &str, id: &str, labels: Labels) -> Result<Lease> {
        labels::validate(&labels)?;
        let labels = labels::without_empty(labels);
        let id = if id.is_empty() { random_id() } else { id.to_owned() };
        let _loan = self.lend();
        self.write("create lease", |tx| {
            namespaces::ensure(tx, namespace)?;
            if exists(tx, namespace, &id)? {
                return Err(Error::AlreadyExists { kind: ObjectKind::Lease, name: id.clone() });
            }
            tx.prepare_cached("INSERT INTO lease VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
                namespace,
                id,
                labels::to_json(&labels),
                labels.contains_key(edges::FLAT),
                labels::expiry(&labels),
                tx.now()
            ])?;
            Ok(Lease { id: id.clone(), labels, created_at: from_nanos(tx.now()) })
        })
    }

    /// Ends a lease. What only it held goes at the next collection.
    pub fn delete_lease(&self, namespace: &str, id: &str) -> Result<()> {
        let _loan = self.lend();
        self.write("delete lease", |tx| {
            require(tx, namespace, id)?;
            remove(tx, namespace, id)
        })
    }

    /// Ends the lease of an operation that may be tried again: the writes in progress that it held rest for a day, like
    /// those that no lease holds, so that the next try goes on where they are.
    pub fn release_lease(&self, namespace: &str, id: &str) -> Result<()> {
        let _loan = self.lend();
        self.write("release lease", |tx| {
            require(tx, namespace, id)?;
            tx.prepare_cached(
                "UPDATE ingest SET expires = ?3 WHERE namespace = ?1 AND expires IS NULL AND ref IN
                 (SELECT name FROM lease_resource WHERE namespace = ?1 AND lease = ?2 AND kind = ?4)",
            )?
            .execute(params![namespace, id, content::unleased_until(tx), edges::INGESTS])?;
            remove(tx, namespace, id)
        })
    }

    /// Leases that match any of `filters` (fields `id`, `labels.<key>`), by ID.
    pub fn leases(&self, namespace: &str, filters: &[String]) -> Result<Vec<Lease>> {
        let filter = Filter::parse(filters)?;
        self.read(|conn| {
            let mut query =
                conn.prepare_cached("SELECT id, labels, created FROM lease WHERE namespace = ?1 ORDER BY id")?;
            let rows = query.query_map([namespace], |row| {
                Ok(Lease { id: row.get(0)?, labels: labels::column(row, 1)?, created_at: from_nanos(row.get(2)?) })
            })?;
            let all: Vec<Lease> = rows.collect::<Result<_, _>>()?;
            Ok(all.into_iter().filter(|lease| lease.matches(&filter)).collect())
        })
    }

    /// Adds an object to a lease; it need not exist. An unknown lease is NotFound.
    pub fn add_resource(&self, namespace: &str, lease: &str, resource: &Resource) -> Result<()> {
        check(resource)?;
        self.lent_together("add to lease", |tx| {
            require(tx, namespace, lease)?;
            insert(tx, namespace, lease, &resource.kind.to_string(), &resource.name)
        })
    }

    /// The same for several, in one transaction.
    pub fn add_resources(&self, namespace: &str, lease: &str, resources: &[Resource]) -> Result<()> {
        resources.iter().try_for_each(check)?;
        self.lent_together("add to lease", |tx| {
            require(tx, namespace, lease)?;
            let mut all = resources.iter();
            all.try_for_each(|one| insert(tx, namespace, lease, &one.kind.to_string(), &one.name))
        })
    }

    /// Takes an object out of a lease. One that was not in it is no error, an unknown lease is.
    pub fn delete_resource(&self, namespace: &str, lease: &str, resource: &Resource) -> Result<()> {
        check(resource)?;
        self.lent_together("take from lease", |tx| {
            require(tx, namespace, lease)?;
            drop_resource(tx, namespace, lease, &resource.kind.to_string(), &resource.name)
        })
    }

    /// What a lease holds, by kind and name; not the activations among it, of which containerd's leases tell nothing either.
    pub fn resources(&self, namespace: &str, lease: &str) -> Result<Vec<Resource>> {
        self.read(|conn| {
            require(conn, namespace, lease)?;
            let mut query = conn.prepare_cached(
                "SELECT kind, name FROM lease_resource WHERE namespace = ?1 AND lease = ?2
                 AND kind <> 'mounts' ORDER BY kind, name",
            )?;
            let mut rows = query.query(params![namespace, lease])?;
            let mut resources = Vec::new();
            while let Some(row) = rows.next()? {
                let kind: String = row.get(0)?;
                resources.push(Resource { kind: kind.parse()?, name: row.get(1)? });
            }
            Ok(resources)
        })
    }

    /// Makes a lease that ends by itself `seconds` from now, and gives `scope` with it. Whoever made it deletes it when
    /// the work is done; the expiry is for those who are killed.
    pub fn scoped_lease(&self, scope: &Scope, seconds: i64) -> Result<Scope> {
        let expires = from_nanos(self.now().saturating_add(seconds.saturating_mul(1_000_000_000)));
        let labels = Labels::from([(edges::EXPIRE.to_owned(), expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())]);
        let lease = self.create_lease(&scope.namespace, "", labels)?;
        Ok(scope.clone().with_lease(lease.id))
    }
}

impl Lease {
    fn matches(&self, filter: &Filter) -> bool {
        filter.matches(|path| match path[0].as_str() {
            "id" => Some(self.id.as_str().into()),
            "labels" => in_map(&self.labels, &path[1..]),
            _ => None,
        })
    }
}

/// Refuses a scope whose lease does not exist.
pub(crate) fn check_scope(conn: &Connection, scope: &Scope) -> Result<()> {
    scope.lease.as_ref().map_or(Ok(()), |lease| require(conn, &scope.namespace, lease))
}

/// Adds an object to the scope's lease, if it has one. Says whether it has.
pub(crate) fn add(tx: &Tx<'_>, scope: &Scope, kind: &str, name: &str) -> Result<bool> {
    let Some(lease) = &scope.lease else { return Ok(false) };
    require(tx, &scope.namespace, lease)?;
    insert(tx, &scope.namespace, lease, kind, name)?;
    Ok(true)
}

/// Takes an object that is gone out of the scope's lease. Others that hold it go on doing so, should it come again.
pub(crate) fn take(tx: &Tx<'_>, scope: &Scope, kind: &str, name: &str) -> Result<()> {
    match &scope.lease {
        Some(lease) => drop_resource(tx, &scope.namespace, lease, kind, name),
        None => Ok(()),
    }
}

/// Removes a lease and suspects what it held.
pub(crate) fn remove(tx: &Connection, namespace: &str, id: &str) -> Result<()> {
    tx.prepare_cached(
        "INSERT OR IGNORE INTO suspect SELECT namespace, kind, name FROM lease_resource WHERE namespace = ?1 AND lease = ?2",
    )?
    .execute(params![namespace, id])?;
    tx.prepare_cached("DELETE FROM lease_resource WHERE namespace = ?1 AND lease = ?2")?
        .execute(params![namespace, id])?;
    tx.prepare_cached("DELETE FROM lease WHERE namespace = ?1 AND id = ?2")?.execute(params![namespace, id])?;
    Ok(())
}

fn insert(tx: &Connection, namespace: &str, lease: &str, kind: &str, name: &str) -> Result<()> {
    tx.prepare_cached("INSERT OR IGNORE INTO lease_resource VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![namespace, lease, kind, name])?;
    Ok(())
}

fn drop_resource(tx: &Connection, namespace: &str, lease: &str, kind: &str, name: &str) -> Result<()> {
    let gone = tx
        .prepare_cached("DELETE FROM lease_resource WHERE namespace = ?1 AND lease = ?2 AND kind = ?3 AND name = ?4")?
        .execute(params![namespace, lease, kind, name])?;
    if gone > 0 {
        edges::suspect(tx, namespace, kind, name)?;
    }
    Ok(())
}

fn exists(conn: &Connection, namespace: &str, id: &str) -> Result<bool> {
    let mut query = conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM lease WHERE namespace = ?1 AND id = ?2)")?;
    Ok(query.query_row(params![namespace, id], |row| row.get(0))?)
}

fn require(conn: &Connection, namespace: &str, id: &str) -> Result<()> {
    if exists(conn, namespace, id)? {
        return Ok(());
    }
    Err(Error::NotFound { kind: ObjectKind::Lease, name: id.to_owned() })
}

fn check(resource: &Resource) -> Result<()> {
    if resource.kind == ResourceKind::Content {
        let parsed = resource.name.parse::<Digest>();
        parsed.map_err(|e| Error::Invalid { what: "content resource", reason: e.to_string() })?;
    }
    Ok(())
}

fn random_id() -> String {
    let id: u128 = rand::rng().random();
    format!("orlop-{id:032x}")
}
