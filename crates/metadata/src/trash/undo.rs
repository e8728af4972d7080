//! Rows and trees of a trash entry, put back in one transaction.

use std::collections::HashMap;
use std::path::PathBuf;

use orlop_snapshot::SnapshotId;
use rusqlite::{Connection, OptionalExtension, params};

use super::{SavedRows, UndoReport};
use crate::edges::{self, CONTENT, Edges, IMAGES};
use crate::gc::{self, BlobRow, ImageRow, SnapshotRow};
use crate::history::{self, State};
use crate::transact::Tx;
use crate::{Error, Labels, Result, Scope, Store, images, labels, namespaces};

/// The transaction of an undo.
pub(super) struct Undo<'a, 'c> {
    pub(super) store: &'a Store,
    pub(super) tx: &'a Tx<'c>,
    pub(super) bins: &'a [PathBuf],
    pub(super) report: &'a mut UndoReport,
}

impl Undo<'_, '_> {
    pub(super) fn blobs(&mut self, saved: &SavedRows) -> Result<()> {
        for blob in &saved.blobs {
            let again = current_labels(self.tx, blob)?;
            let mut all = gc::json(&blob.labels)?;
            let is_new = again.is_none();
            all.extend(again.unwrap_or_default());
            self.blob(blob, &all, is_new)?;
        }
        for blob in &saved.shared.blobs {
            if current_labels(self.tx, blob)?.is_none() {
                self.blob(blob, &gc::json(&blob.labels)?, true)?;
            }
        }
        Ok(())
    }

    fn blob(&mut self, blob: &BlobRow, all: &Labels, is_new: bool) -> Result<()> {
        if self.report.missing.iter().any(|digest| digest.as_str() == blob.digest) {
            return Ok(());
        }
        self.report.blobs += usize::from(is_new);
        namespaces::ensure(self.tx, &blob.namespace)?;
        self.tx
            .prepare_cached(
                "INSERT INTO blob (namespace, digest, size, labels, root, created, updated)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (namespace, digest) DO UPDATE
                 SET labels = excluded.labels, root = excluded.root, updated = excluded.updated",
            )?
            .execute(params![
                blob.namespace,
                blob.digest,
                blob.size,
                labels::to_json(all),
                all.contains_key(edges::ROOT),
                blob.created,
                self.tx.now()
            ])?;
        edges::put(self.tx, &blob.namespace, CONTENT, &blob.digest, &Edges::of_labels(CONTENT, all))?;
        edges::suspect(self.tx, &blob.namespace, CONTENT, &blob.digest)
    }

    /// Parents first. What stood on a snapshot that is gone for good stays gone: unpacking makes it again.
    pub(super) fn snapshots(&mut self, saved: &SavedRows) -> Result<()> {
        let mut ids = HashMap::new();
        let mut all: Vec<SnapshotRow> = saved.all_snapshots().cloned().collect();
        gc::children_first(&mut all);
        for snapshot in all.iter().rev() {
            // A lease may have kept it until it was committed under another key.
            if is_there(self.tx, snapshot.id)? {
                ids.insert(snapshot.id, snapshot.id);
                continue;
            }
            if let Some((id, _)) = snapshot_id(self.tx, snapshot, &snapshot.name)? {
                ids.insert(snapshot.id, id);
                continue;
            }
            let parent = match self.parent(snapshot, &ids)? {
                Parent::Gone => continue,
                Parent::None => None,
                Parent::Is(id) => Some(id),
            };
            if self.tree(snapshot)? {
                self.insert_snapshot(snapshot, parent)?;
                ids.insert(snapshot.id, snapshot.id);
                self.report.snapshots += 1;
            }
        }
        Ok(())
    }

    /// Moves a tree back. Says whether it is there.
    fn tree(&self, snapshot: &SnapshotRow) -> Result<bool> {
        let Ok(driver) = self.store.driver(&snapshot.driver) else { return Ok(false) };
        for bin in self.bins {
            let id = SnapshotId(snapshot.id.unsigned_abs());
            match driver.restore(id, &gc::tree_directory(bin, driver.name())) {
                Err(orlop_snapshot::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                other => return other.map(|()| true).map_err(Error::from),
            }
        }
        Ok(false)
    }

    fn parent(&self, snapshot: &SnapshotRow, ids: &HashMap<i64, i64>) -> Result<Parent> {
        let (Some(old), Some(name)) = (snapshot.parent, &snapshot.parent_name) else { return Ok(Parent::None) };
        if let Some(&id) = ids.get(&old) {
            return Ok(Parent::Is(id));
        }
        // The same key is the same tree only if it is a chain ID that was committed again.
        Ok(match snapshot_id(self.tx, snapshot, name)? {
            Some((id, kind)) if id == old || kind == "committed" => Parent::Is(id),
            _ => Parent::Gone,
        })
    }

    fn insert_snapshot(&self, snapshot: &SnapshotRow, parent: Option<i64>) -> Result<()> {
        let stated = gc::json(&snapshot.labels)?;
        namespaces::ensure(self.tx, &snapshot.namespace)?;
        self.tx
            .prepare_cached(
                "INSERT INTO snapshot (id, namespace, driver, name, parent, kind, labels, root, bytes, inodes, created, updated)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                snapshot.id,
                snapshot.namespace,
                snapshot.driver,
                snapshot.name,
                parent,
                snapshot.kind,
                snapshot.labels,
                stated.contains_key(edges::ROOT),
                snapshot.bytes,
                snapshot.inodes,
                snapshot.created,
                self.tx.now()
            ])?;
        let kind = edges::snapshots(&snapshot.driver);
        let mut stated = Edges::of_labels(&kind, &stated);
        if let Some(name) = &snapshot.parent_name {
            stated = stated.to(&kind, name);
        }
        edges::put(self.tx, &snapshot.namespace, &kind, &snapshot.name, &stated)?;
        edges::suspect(self.tx, &snapshot.namespace, &kind, &snapshot.name)
    }

    pub(super) fn images(&mut self, scope: &Scope, saved: &SavedRows) -> Result<()> {
        for image in &saved.images {
            let name = (image.namespace.clone(), image.name.clone());
            if images::get(self.tx, &image.namespace, &image.name)?.is_some() {
                self.report.kept.push(name);
                continue;
            }
            self.insert_image(scope, image)?;
            self.report.images.push(name);
        }
        Ok(())
    }

    fn insert_image(&self, scope: &Scope, image: &ImageRow) -> Result<()> {
        let (target, stated) = (image.target()?, gc::json(&image.labels)?);
        namespaces::ensure(self.tx, &image.namespace)?;
        self.tx
            .prepare_cached(
                "INSERT INTO image (namespace, name, digest, media_type, size, annotations, labels, expires, created, updated)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                image.namespace,
                image.name,
                image.digest,
                image.media_type,
                image.size,
                image.annotations,
                image.labels,
                labels::expiry(&stated),
                image.created,
                self.tx.now()
            ])?;
        let edges = Edges::of_labels(IMAGES, &stated).to(CONTENT, &image.digest);
        edges::put(self.tx, &image.namespace, IMAGES, &image.name, &edges)?;
        edges::suspect(self.tx, &image.namespace, IMAGES, &image.name)?;
        let state = State { target: &target, labels: &stated, created: Some(image.created) };
        history::record(self.tx, scope.into(), &image.namespace, &image.name, None, Some(state))
    }
}

/// What a restored snapshot stands on.
enum Parent {
    None,
    Is(i64),
    Gone,
}

/// Whether the snapshot is still the one of this number, whatever its key.
fn is_there(tx: &Connection, id: i64) -> Result<bool> {
    Ok(tx.prepare_cached("SELECT 1 FROM snapshot WHERE id = ?1")?.exists([id])?)
}

/// Number and kind of the snapshot that has this key now.
fn snapshot_id(tx: &Connection, like: &SnapshotRow, name: &str) -> Result<Option<(i64, String)>> {
    let mut query =
        tx.prepare_cached("SELECT id, kind FROM snapshot WHERE namespace = ?1 AND driver = ?2 AND name = ?3")?;
    Ok(query.query_row(params![like.namespace, like.driver, name], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// Labels of a blob that is there again.
fn current_labels(tx: &Connection, blob: &BlobRow) -> Result<Option<Labels>> {
    let mut query = tx.prepare_cached("SELECT labels FROM blob WHERE namespace = ?1 AND digest = ?2")?;
    Ok(query.query_row(params![blob.namespace, blob.digest], |row| labels::column(row, 0)).optional()?)
}
