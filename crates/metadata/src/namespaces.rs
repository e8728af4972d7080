//! Namespaces and their labels.

use rusqlite::{Connection, OptionalExtension, params};

use crate::changes::Change;
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Store, labels};

/// Bytes in an identifier at most: containerd's bound.
const MAX_IDENTIFIER: usize = 76;

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its name: containerd's identifier rule, at most 76 characters.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

impl Store {
    /// All namespaces by name; one exists as soon as something is in it.
    pub fn namespaces(&self) -> Result<Vec<NamespaceInfo>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached("SELECT name, labels FROM namespace ORDER BY name")?;
            let rows =
                query.query_map([], |row| Ok(NamespaceInfo { name: row.get(0)?, labels: labels::column(row, 1)? }))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// One namespace's labels; an unknown one succeeds empty, as in containerd.
    pub fn namespace(&self, name: &str) -> Result<NamespaceInfo> {
        let labels = self.read(|conn| labels_of(conn, name))?.unwrap_or_default();
        Ok(NamespaceInfo { name: name.to_owned(), labels })
    }

    /// Makes a namespace.
    pub fn create_namespace(&self, name: &str, labels: Labels) -> Result<NamespaceInfo> {
        validate_namespace(name)?;
        labels::validate(&labels)?;
        let labels = labels::without_empty(labels);
        self.bring("create namespace", |tx| {
            if labels_of(tx, name)?.is_some() {
                return Err(Error::AlreadyExists { kind: ObjectKind::Namespace, name: name.to_owned() });
            }
            tx.prepare_cached("INSERT INTO namespace VALUES (?1, ?2)")?
                .execute(params![name, labels::to_json(&labels)])?;
            tx.tell(name, Change::NamespaceCreate { name: name.to_owned(), labels: labels.clone() });
            Ok(NamespaceInfo { name: name.to_owned(), labels: labels.clone() })
        })
    }

    /// Replaces the labels, or with mask paths `labels.<key>` some of them. An empty value deletes. As in containerd, an
    /// unknown namespace comes to be.
    pub fn update_namespace(&self, name: &str, labels: Labels, mask: &[String]) -> Result<NamespaceInfo> {
        self.bring("update namespace", |tx| {
            ensure(tx, name)?;
            // As in containerd a mask names labels one by one; without a mask all are replaced.
            if let Some(path) = mask.iter().find(|path| *path == "labels") {
                return Err(labels::unknown_field(path, "labels.<key>"));
            }
            let old = labels_of(tx, name)?.unwrap_or_default();
            tx.tell(name, Change::NamespaceUpdate { name: name.to_owned(), labels: labels.clone() });
            let labels = labels::masked(old, labels.clone(), mask)?;
            tx.prepare_cached("UPDATE namespace SET labels = ?2 WHERE name = ?1")?
                .execute(params![name, labels::to_json(&labels)])?;
            Ok(NamespaceInfo { name: name.to_owned(), labels })
        })
    }

    /// Deletes a namespace without images, content, snapshots and containers, and with it its leases and writes in progress;
    /// FailedPrecondition names what is still in it.
    pub fn delete_namespace(&self, name: &str) -> Result<()> {
        let _loan = self.lend();
        self.write("delete namespace", |tx| {
            if labels_of(tx, name)?.is_none() {
                return Err(Error::NotFound { kind: ObjectKind::Namespace, name: name.to_owned() });
            }
            let rest = contents(tx, name)?;
            if !rest.is_empty() {
                let reason = format!("must be empty to be deleted, but still has {}", rest.join(", "));
                return Err(Error::FailedPrecondition { kind: ObjectKind::Namespace, name: name.to_owned(), reason });
            }
            tx.execute(
                "INSERT OR IGNORE INTO doomed (kind, name) SELECT 'ingest', backend FROM ingest WHERE namespace = ?1",
                [name],
            )?;
            tx.execute(
                "INSERT OR IGNORE INTO doomed (kind, name) SELECT ?2, id FROM mount WHERE namespace = ?1",
                [name, crate::mounts::DOOMED],
            )?;
            for table in ["mount", "ingest", "lease_resource", "lease", "edge", "condition", "used", "suspect"] {
                tx.execute(&format!("DELETE FROM {table} WHERE namespace = ?1"), [name])?;
            }
            tx.execute("DELETE FROM namespace WHERE name = ?1", [name])?;
            tx.tell(name, Change::NamespaceDelete { name: name.to_owned() });
            Ok(())
        })
    }
}

fn labels_of(conn: &Connection, name: &str) -> Result<Option<Labels>> {
    let mut query = conn.prepare_cached("SELECT labels FROM namespace WHERE name = ?1")?;
    Ok(query.query_row([name], |row| labels::column(row, 0)).optional()?)
}

/// Kinds of objects that keep a namespace from being deleted.
fn contents(conn: &Connection, name: &str) -> Result<Vec<&'static str>> {
    let mut rest = Vec::new();
    for (what, table) in
        [("images", "image"), ("blobs", "blob"), ("snapshots", "snapshot"), ("containers", "container")]
    {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE namespace = ?1)");
        if conn.query_row(&sql, [name], |row| row.get(0))? {
            rest.push(what);
        }
    }
    Ok(rest)
}

/// Makes a namespace that is about to hold something.
pub(crate) fn ensure(tx: &Tx<'_>, name: &str) -> Result<()> {
    validate_namespace(name)?;
    tx.prepare_cached("INSERT OR IGNORE INTO namespace (name) VALUES (?1)")?.execute([name])?;
    Ok(())
}

/// Checks a namespace's name by containerd's rule for identifiers: words of ASCII letters and digits, joined by single
/// `.`, `_` or `-`; at most 76 bytes.
///
/// # Errors
/// [`Error::Invalid`].
pub fn validate_namespace(name: &str) -> Result<()> {
    validate_identifier("namespace", name)
}

/// The same for the identifier of something else; `what` is for the error.
///
/// # Errors
/// [`Error::Invalid`].
pub fn validate_identifier(what: &'static str, name: &str) -> Result<()> {
    let invalid = |reason: String| Err(Error::Invalid { what, reason });
    if name.is_empty() {
        return invalid("it is empty".to_owned());
    }
    if name.len() > MAX_IDENTIFIER {
        return invalid(format!("{name:?} has {} bytes, at most {MAX_IDENTIFIER} are allowed", name.len()));
    }
    if name.split(['.', '_', '-']).any(|word| word.is_empty() || !word.bytes().all(|b| b.is_ascii_alphanumeric())) {
        return invalid(format!("{name:?} must be letters and digits, joined by single '.', '_' or '-'"));
    }
    Ok(())
}
