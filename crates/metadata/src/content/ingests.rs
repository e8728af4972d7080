//! The rows of writes in progress.

use orlop_oci::Digest;
use rand::RngExt;
use rusqlite::{Connection, OptionalExtension, params};

use super::{doom, get, insert};
use crate::changes::Change;
use crate::edges::{self, Edges};
use crate::history::digest_column;
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Scope, damage, leases, namespaces};

/// How long a write that no lease holds may rest: containerd's time.
const UNLEASED_NANOS: i64 = 24 * 3600 * 1_000_000_000;

/// Until when a write rests that no lease holds from now on.
pub(crate) fn unleased_until(tx: &Tx<'_>) -> i64 {
    tx.now().saturating_add(UNLEASED_NANOS)
}

/// What opening a write found.
pub(super) enum Opened {
    /// The namespace has the blob, which is leased now. The raw store's name of a write under the same ref, if any.
    Exists { stale: Option<String> },
    /// The row is there; the raw store's name of the write.
    Ready { backend: String },
}

/// What finishing a write found.
pub(super) enum Finished {
    /// The blob is visible.
    Committed,
    /// It was visible already.
    Exists,
    /// The row named another digest, and names the right one again: the bytes were unprotected for a while.
    Unprotected,
    /// The write was aborted. The collector looks after the bytes.
    Aborted,
}

/// Opens or reopens a write. `expected` goes into a new row only: an existing one may belong to a writer that commits
/// right now. A blob whose bytes are lost is written anew: with `refill` it counts as not there.
pub(super) fn open(
    tx: &Tx<'_>,
    scope: &Scope,
    reference: &str,
    expected: Option<&Digest>,
    refill: bool,
) -> Result<Opened> {
    let namespace = &scope.namespace;
    let existing = backend(tx, namespace, reference)?;
    if let Some(digest) = expected.filter(|_| !refill)
        && get(tx, namespace, digest)?.is_some()
    {
        leases::add(tx, scope, edges::CONTENT, digest.as_str())?;
        return Ok(Opened::Exists { stale: existing });
    }
    namespaces::ensure(tx, namespace)?;
    let leased = leases::add(tx, scope, edges::INGESTS, reference)?;
    let expires = (!leased).then(|| unleased_until(tx));
    if let Some(backend) = existing {
        if expires.is_some() {
            tx.prepare_cached("UPDATE ingest SET expires = ?3 WHERE namespace = ?1 AND ref = ?2")?
                .execute(params![namespace, reference, expires])?;
        }
        return Ok(Opened::Ready { backend });
    }
    let unique: u64 = rand::rng().random();
    let backend = format!("{namespace}/{unique:016x}/{reference}");
    tx.prepare_cached("INSERT INTO ingest VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        namespace,
        reference,
        backend,
        expected.map(Digest::as_str),
        expires,
        tx.now()
    ])?;
    state(tx, namespace, reference, expected)?;
    edges::suspect(tx, namespace, edges::INGESTS, reference)?;
    Ok(Opened::Ready { backend })
}

/// Whether the write of `backend` protects `digest`, as most do since they were opened; `Some(false)` if the namespace has
/// that blob already, `None` if a [`protect`] must make it so. Any committed state will do: what happens to the write after
/// it, [`finish`] finds out.
pub(super) fn protects(
    conn: &Connection,
    scope: &Scope,
    reference: &str,
    backend: &str,
    digest: &Digest,
) -> Result<Option<bool>> {
    if get(conn, &scope.namespace, digest)?.is_some() {
        return Ok(Some(false));
    }
    let named = expected(conn, &scope.namespace, reference, backend)?;
    Ok((named.as_ref() == Some(digest)).then_some(true))
}

/// Makes `digest` what the write of `backend` protects. Says `false` if the namespace has that blob already.
pub(super) fn protect(tx: &Tx<'_>, scope: &Scope, reference: &str, backend: &str, digest: &Digest) -> Result<bool> {
    if let Some(protected) = protects(tx, scope, reference, backend, digest)? {
        return Ok(protected);
    }
    expect(tx, &scope.namespace, reference, digest)?;
    Ok(true)
}

/// As [`protect`], also for a blob that the namespace has: its bytes are lost, and the write brings them.
pub(super) fn protect_refill(
    tx: &Tx<'_>,
    scope: &Scope,
    reference: &str,
    backend: &str,
    digest: &Digest,
) -> Result<()> {
    if expected(tx, &scope.namespace, reference, backend)?.as_ref() != Some(digest) {
        expect(tx, &scope.namespace, reference, digest)?;
    }
    Ok(())
}

/// Lets a blob take the place of the write, if nothing happened to the write meanwhile. With `brought` its bytes have just
/// been verified: what was known of damage to it is over.
#[allow(clippy::too_many_arguments, reason = "what a write is and what becomes of it")]
pub(super) fn finish(
    tx: &Tx<'_>,
    scope: &Scope,
    reference: &str,
    backend: &str,
    digest: &Digest,
    size: u64,
    labels: &Labels,
    brought: bool,
) -> Result<Finished> {
    let namespace = &scope.namespace;
    if get(tx, namespace, digest)?.is_some() {
        leases::add(tx, scope, edges::CONTENT, digest.as_str())?;
        if brought {
            damage::mended(tx, edges::CONTENT, digest.as_str())?;
        }
        remove_if(tx, scope, reference, backend)?;
        return Ok(Finished::Exists);
    }
    match expected(tx, namespace, reference, backend) {
        Ok(Some(named)) if named == *digest => {}
        Ok(_) => {
            expect(tx, namespace, reference, digest)?;
            return Ok(Finished::Unprotected);
        }
        Err(Error::NotFound { .. }) => {
            doom(tx, "content", digest.as_str())?;
            return Ok(Finished::Aborted);
        }
        Err(error) => return Err(error),
    }
    insert(tx, scope, digest, size, labels)?;
    if brought {
        damage::mended(tx, edges::CONTENT, digest.as_str())?;
    }
    remove_if(tx, scope, reference, backend)?;
    tx.tell(namespace, Change::ContentCreate { digest: digest.clone(), size });
    Ok(Finished::Committed)
}

/// Leaves to the collector what the raw store may have of a write that ended without it: another may have opened it before the blob
/// was there, and go on until he learns that it has no row any more.
pub(super) fn leave(tx: &Tx<'_>, backend: &str) -> Result<()> {
    doom(tx, "ingest", backend)
}

/// Removes a write's row. The collector drops its bytes, should the caller not come to it, and the bytes it protected.
pub(super) fn abort(tx: &Tx<'_>, scope: &Scope, reference: &str) -> Result<String> {
    let namespace = &scope.namespace;
    let backend = backend(tx, namespace, reference)?.ok_or_else(|| no_ingest(reference))?;
    let digest = expected(tx, namespace, reference, &backend)?;
    remove_if(tx, scope, reference, &backend)?;
    doom(tx, "ingest", &backend)?;
    if let Some(digest) = digest {
        doom(tx, "content", digest.as_str())?;
    }
    Ok(backend)
}

/// Removes the row of a write whose bytes the raw store has no more, unless the ref was opened anew.
pub(super) fn remove_if(tx: &Tx<'_>, scope: &Scope, reference: &str, backend: &str) -> Result<()> {
    let namespace = &scope.namespace;
    let gone = tx
        .prepare_cached("DELETE FROM ingest WHERE namespace = ?1 AND ref = ?2 AND backend = ?3")?
        .execute(params![namespace, reference, backend])?;
    if gone > 0 {
        edges::remove(tx, namespace, edges::INGESTS, reference)?;
        leases::take(tx, scope, edges::INGESTS, reference)?;
    }
    Ok(())
}

/// All writes of a namespace: ref and the raw store's name.
pub(super) fn all(conn: &Connection, namespace: &str) -> Result<Vec<(String, String)>> {
    let mut query = conn.prepare_cached("SELECT ref, backend FROM ingest WHERE namespace = ?1 ORDER BY ref")?;
    let rows = query.query_map([namespace], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The raw store's name of a write.
pub(super) fn backend(conn: &Connection, namespace: &str, reference: &str) -> Result<Option<String>> {
    let mut query = conn.prepare_cached("SELECT backend FROM ingest WHERE namespace = ?1 AND ref = ?2")?;
    Ok(query.query_row(params![namespace, reference], |row| row.get(0)).optional()?)
}

/// The digest that a write protects.
///
/// # Errors
/// NotFound if the write was aborted, also if its ref was opened anew.
fn expected(conn: &Connection, namespace: &str, reference: &str, backend: &str) -> Result<Option<Digest>> {
    let mut query =
        conn.prepare_cached("SELECT expected FROM ingest WHERE namespace = ?1 AND ref = ?2 AND backend = ?3")?;
    let found = query
        .query_row(params![namespace, reference, backend], |row| match row.get_ref(0)? {
            rusqlite::types::ValueRef::Null => Ok(None),
            _ => digest_column(row, 0).map(Some),
        })
        .optional()?;
    found.ok_or_else(|| no_ingest(reference))
}

/// Changes what a write protects. What it protected may be on disk, and nothing else may know of it.
fn expect(tx: &Tx<'_>, namespace: &str, reference: &str, digest: &Digest) -> Result<()> {
    tx.prepare_cached(
        "INSERT OR IGNORE INTO doomed (kind, name)
         SELECT 'content', expected FROM ingest WHERE namespace = ?1 AND ref = ?2 AND expected IS NOT NULL",
    )?
    .execute(params![namespace, reference])?;
    tx.prepare_cached("UPDATE ingest SET expected = ?3 WHERE namespace = ?1 AND ref = ?2")?.execute(params![
        namespace,
        reference,
        digest.as_str()
    ])?;
    state(tx, namespace, reference, Some(digest))
}

fn state(tx: &Tx<'_>, namespace: &str, reference: &str, expected: Option<&Digest>) -> Result<()> {
    let stated = expected.map(|d| Edges::default().to(edges::CONTENT, d.as_str())).unwrap_or_default();
    edges::put(tx, namespace, edges::INGESTS, reference, &stated)
}

fn no_ingest(reference: &str) -> Error {
    Error::NotFound { kind: ObjectKind::Ingest, name: reference.to_owned() }
}
