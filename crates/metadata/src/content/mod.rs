//! Content as one namespace sees it.
//!
//! A blob that a namespace has is a row; the bytes are in the raw store, once for all namespaces. A write in progress is
//! a row that names the raw store's ingest (`backend`), and a root for the digest it expects. The order of a write:
//!
//! 1. The `ingest` row is committed, with the expected digest if that is known.
//! 2. Bytes go to the raw store.
//! 3. The row gets the digest under which the bytes will be visible; committed. Mostly it has it since step 1, and that is
//!    only looked up.
//! 4. The raw store verifies, syncs and renames.
//! 5. One transaction: if the row still names that digest, the `blob` row takes its place. If another opener of the same
//!    ref changed it meanwhile, back to 3, and the bytes are looked for again, since nothing protected them for a while.
//!
//! Steps 1 and 5 of several writes may share a transaction (`several`).
//!
//! A blob whose bytes are lost, since they were damaged and set aside or are gone otherwise, keeps its row; whoever writes it
//! brings them back in the same way.

mod ingests;
mod roles;
mod several;
mod writer;

pub(crate) use ingests::unleased_until;
use std::collections::HashMap;

use jiff::Timestamp;
use orlop_oci::Digest;
use rusqlite::{Connection, OptionalExtension, Row, params};
pub use several::Brought;
pub use writer::ScopedWriter;

use crate::changes::Change;
use crate::db::from_nanos;
use crate::edges::{self, Edges};
use crate::filter::{Filter, in_map};
use crate::history::digest_column;
use crate::images::{size_column, size_from_column};
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Scope, Store, labels, leases, look, namespaces};

/// A blob in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Labels, `containerd.io/gc.ref.…` among them.
    pub labels: Labels,
    /// When it came into this namespace.
    pub created_at: Timestamp,
    /// When its labels last changed.
    pub updated_at: Timestamp,
}

/// Plays the roles of `orlop-content` in one namespace, on behalf of a [`Scope`].
///
/// Content that another namespace has is adopted without bytes (containerd's `shared` policy). `Manager::delete` drops
/// this namespace's row only.
#[derive(Clone)]
pub struct ScopedContent {
    pub(crate) store: Store,
    pub(crate) scope: Scope,
}

impl Store {
    /// Content in a namespace.
    pub fn content(&self, scope: &Scope) -> ScopedContent {
        ScopedContent { store: self.clone(), scope: scope.clone() }
    }
}

impl ScopedContent {
    /// A blob with its labels. Blocks.
    pub fn stat(&self, digest: &Digest) -> Result<ContentInfo> {
        self.store.read(|conn| get(conn, &self.scope.namespace, digest))?.ok_or_else(|| no_blob(digest))
    }

    /// Blobs that match any of `filters` (fields `digest`, `labels.<key>`; as in containerd `size` is not one), by
    /// digest. Blocks.
    pub fn find(&self, filters: &[String]) -> Result<Vec<ContentInfo>> {
        let filter = Filter::parse(filters)?;
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT digest, size, labels, created, updated FROM blob WHERE namespace = ?1 ORDER BY digest",
            )?;
            let mut rows = query.query([&self.scope.namespace])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let info = info(row)?;
                if filter.is_trivial() || info.matches(&filter) {
                    found.push(info);
                }
            }
            Ok(found)
        })
    }

    /// The sizes in bytes of all blobs: what is there, without what [`ScopedContent::find`] reads of each. Blocks.
    pub fn sizes(&self) -> Result<HashMap<Digest, u64>> {
        self.store.read(|conn| {
            // Answered from an index that has nothing else.
            let mut query =
                conn.prepare_cached("SELECT digest, size FROM blob INDEXED BY blob_digest WHERE namespace = ?1")?;
            let sizes = query.query_map([&self.scope.namespace], |row| {
                Ok((digest_column(row, 0)?, size_from_column(row.get(1)?)))
            })?;
            Ok(sizes.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Replaces the labels, or with mask paths `labels.<key>` some of them. An empty value deletes. Blocks.
    pub fn update(&self, digest: &Digest, labels: Labels, mask: &[String]) -> Result<ContentInfo> {
        self.store.bring_together("label content", |tx| {
            let old = get(tx, &self.scope.namespace, digest)?.ok_or_else(|| no_blob(digest))?;
            let labels = labels::masked(old.labels.clone(), labels.clone(), mask)?;
            look::content_changed(tx)?;
            self.relabel(tx, old, labels)
        })
    }

    /// Several blobs' labels merged in one transaction: pull's way of writing all `gc.ref` labels at once. Blocks.
    pub fn label_all(&self, labels: &[(Digest, Labels)]) -> Result<()> {
        self.store.bring_together("label content", |tx| {
            for (digest, added) in labels {
                let old = get(tx, &self.scope.namespace, digest)?.ok_or_else(|| no_blob(digest))?;
                let mut merged = old.labels.clone();
                labels::merge(&mut merged, added);
                labels::validate(&merged)?;
                if merged != old.labels {
                    if old.labels.keys().any(|key| !merged.contains_key(key)) {
                        look::content_changed(tx)?;
                    }
                    self.relabel(tx, old, merged)?;
                }
            }
            Ok(())
        })
    }

    /// Drops this namespace's row. Bytes go at the next collection. Blocks.
    pub fn forget(&self, digest: &Digest) -> Result<()> {
        let namespace = &self.scope.namespace;
        let _loan = self.store.lend();
        self.store.write("delete content", |tx| {
            let gone = tx
                .prepare_cached("DELETE FROM blob WHERE namespace = ?1 AND digest = ?2")?
                .execute(params![namespace, digest.as_str()])?;
            if gone == 0 {
                return Err(no_blob(digest));
            }
            look::content_changed(tx)?;
            edges::remove(tx, namespace, edges::CONTENT, digest.as_str())?;
            leases::take(tx, &self.scope, edges::CONTENT, digest.as_str())?;
            tx.tell(namespace, Change::ContentDelete { digest: digest.clone() });
            doom(tx, "content", digest.as_str())
        })
    }

    fn relabel(&self, tx: &Tx<'_>, old: ContentInfo, labels: Labels) -> Result<ContentInfo> {
        let (namespace, name) = (&self.scope.namespace, old.digest.as_str());
        let root = labels.contains_key(edges::ROOT);
        tx.prepare_cached("UPDATE blob SET labels = ?3, root = ?4, updated = ?5 WHERE namespace = ?1 AND digest = ?2")?
            .execute(params![namespace, name, labels::to_json(&labels), root, tx.now()])?;
        edges::put(tx, namespace, edges::CONTENT, name, &Edges::of_labels(edges::CONTENT, &labels))?;
        if !root && old.labels.contains_key(edges::ROOT) {
            edges::suspect(tx, namespace, edges::CONTENT, name)?;
        }
        Ok(ContentInfo { labels, updated_at: from_nanos(tx.now()), ..old })
    }
}

impl ContentInfo {
    fn matches(&self, filter: &Filter) -> bool {
        filter.matches(|path| match path[0].as_str() {
            "digest" => Some(self.digest.as_str().into()),
            "labels" => in_map(&self.labels, &path[1..]),
            _ => None,
        })
    }
}

/// A blob's row within a transaction.
fn get(conn: &Connection, namespace: &str, digest: &Digest) -> Result<Option<ContentInfo>> {
    let mut query = conn.prepare_cached(
        "SELECT digest, size, labels, created, updated FROM blob WHERE namespace = ?1 AND digest = ?2",
    )?;
    Ok(query.query_row(params![namespace, digest.as_str()], info).optional()?)
}

fn info(row: &Row<'_>) -> rusqlite::Result<ContentInfo> {
    Ok(ContentInfo {
        digest: digest_column(row, 0)?,
        size: size_from_column(row.get(1)?),
        labels: labels::column(row, 2)?,
        created_at: from_nanos(row.get(3)?),
        updated_at: from_nanos(row.get(4)?),
    })
}

/// Makes a blob visible in a namespace; its bytes are durable and protected.
fn insert(tx: &Tx<'_>, scope: &Scope, digest: &Digest, size: u64, labels: &Labels) -> Result<()> {
    let (namespace, name) = (&scope.namespace, digest.as_str());
    namespaces::ensure(tx, namespace)?;
    let root = labels.contains_key(edges::ROOT);
    tx.prepare_cached("INSERT INTO blob VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)")?.execute(params![
        namespace,
        name,
        size_column(size),
        labels::to_json(labels),
        root,
        tx.now()
    ])?;
    edges::put(tx, namespace, edges::CONTENT, name, &Edges::of_labels(edges::CONTENT, labels))?;
    edges::suspect(tx, namespace, edges::CONTENT, name)?;
    leases::add(tx, scope, edges::CONTENT, name)?;
    Ok(())
}

/// Has the collector look whether bytes are still needed.
pub(crate) fn doom(tx: &Connection, kind: &str, name: &str) -> Result<()> {
    tx.prepare_cached("INSERT OR IGNORE INTO doomed (kind, name) VALUES (?1, ?2)")?.execute(params![kind, name])?;
    Ok(())
}

fn no_blob(digest: &Digest) -> Error {
    Error::NotFound { kind: ObjectKind::Content, name: digest.to_string() }
}
