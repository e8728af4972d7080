//! The format of the database, and how an older one becomes it.
//!
//! `schema.sql` is the newest format; a new database is made from it. An older one is brought up one format at a time,
//! all in one transaction. A database that may only be read is read as it is, back to [`OLDEST_READ`].

use std::path::Path;

use orlop_oci::{ChainId, Digest, ImageId, Platform};
use rusqlite::{Connection, TransactionBehavior};
use serde::Deserialize;

use crate::history::digest_column;
use crate::summary::{self, ManifestSummary};
use crate::{Error, Result, conditions, edges};

/// The format this program writes and the newest it reads.
const FORMAT: i64 = 6;

/// The oldest format whose tables this program can read as they are.
const OLDEST_READ: i64 = 1;

/// `orlp`, for file(1).
const APPLICATION_ID: i64 = 0x6f72_6c70;

/// From each format to the next one, from 1 on.
const STEPS: [fn(&Connection) -> Result<()>; FORMAT as usize - 1] =
    [to_format_2, to_format_3, to_format_4, to_format_5, to_format_6];

/// What format 3 brought: tables alone.
const CONTAINERS: &str = include_str!("format-3.sql");

/// What format 4 brought: tables alone, filled from labels.
const CONDITIONS: &str = include_str!("format-4.sql");

/// What format 5 brought: a table alone, and edges from labels.
const MOUNTS: &str = include_str!("format-5.sql");

/// What format 6 brought: a table alone.
const DAMAGE: &str = include_str!("format-6.sql");

/// Refuses a format that cannot be read.
pub(crate) fn check(connection: &Connection, path: &Path) -> Result<()> {
    let found = format_of(connection, path)?;
    if found < OLDEST_READ {
        let reason =
            format!("it has format {found} and must be brought to format {FORMAT} first: open it for writing once");
        return Err(Error::ReadOnly { path: path.to_owned(), reason });
    }
    Ok(())
}

/// Gives a connection that may only read an older database the tables that it lacks, its own ones, so that queries need not
/// ask which format they meet.
pub(crate) fn complete(connection: &Connection, path: &Path) -> Result<()> {
    let found = format_of(connection, path)?;
    let own =
        |sql: &str| sql.replace("CREATE TABLE", "CREATE TEMP TABLE").replace("CREATE INDEX ", "CREATE INDEX temp.");
    if (OLDEST_READ..3).contains(&found) {
        connection.execute_batch(&own(CONTAINERS))?;
    }
    if (OLDEST_READ..4).contains(&found) {
        connection.execute_batch(&own(CONDITIONS))?;
        conditions::fill(connection)?;
    }
    if (OLDEST_READ..5).contains(&found) {
        connection.execute_batch(&own(MOUNTS))?;
    }
    if (OLDEST_READ..6).contains(&found) {
        connection.execute_batch(&own(DAMAGE))?;
    }
    Ok(())
}

/// Brings an older or new database to the newest format. Several processes may try at once: one does it.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    if format_of(connection, path)? == FORMAT {
        return Ok(());
    }
    let migrating = |source| Error::Database { operation: "migrate meta.db", source };
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(migrating)?;
    match usize::try_from(format_of(&tx, path)?).unwrap_or(0) {
        0 => tx.execute_batch(include_str!("schema.sql")).map_err(migrating)?,
        from => STEPS[from - 1..].iter().try_for_each(|step| step(&tx))?,
    }
    tx.pragma_update(None, "user_version", FORMAT).map_err(migrating)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(migrating)?;
    tx.commit().map_err(migrating)
}

/// The format that a database says it has; 0: none.
pub(crate) fn format_of(connection: &Connection, path: &Path) -> Result<i64> {
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|source| Error::Database { operation: "read the format of meta.db", source })?;
    if found > FORMAT {
        return Err(Error::NewerFormat { path: path.to_owned(), found, supported: FORMAT });
    }
    Ok(found)
}

/// Compact summaries; indexes from which listing is answered.
fn to_format_2(tx: &Connection) -> Result<()> {
    tx.execute_batch(include_str!("format-2.sql"))?;
    let mut query = tx.prepare("SELECT digest, body FROM manifest_summary_1")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        // What does not parse was not there for format 1 either: it is learnt from the documents again.
        if let Ok(old) = serde_json::from_str::<Summary1>(row.get_ref(1)?.as_str().unwrap_or_default()) {
            summary::put(tx, &digest_column(row, 0)?, &old.into())?;
        }
    }
    drop(rows);
    drop(query);
    tx.execute_batch("DROP TABLE manifest_summary_1")?;
    Ok(())
}

/// Containers.
fn to_format_3(tx: &Connection) -> Result<()> {
    Ok(tx.execute_batch(CONTAINERS)?)
}

/// Edges that are there at times.
fn to_format_4(tx: &Connection) -> Result<()> {
    tx.execute_batch(CONDITIONS)?;
    conditions::fill(tx)
}

/// Activations.
fn to_format_5(tx: &Connection) -> Result<()> {
    tx.execute_batch(MOUNTS)?;
    edges::fill_mounts(tx)
}

/// Damage.
fn to_format_6(tx: &Connection) -> Result<()> {
    Ok(tx.execute_batch(DAMAGE)?)
}

/// A summary as format 1 had it, in JSON.
#[derive(Deserialize)]
struct Summary1 {
    size: u64,
    media_type: String,
    image_id: Option<ImageId>,
    config_size: u64,
    platform: Option<Platform>,
    user: String,
    chain: Vec<ChainId>,
    layers: Vec<(Digest, u64)>,
    manifests: Vec<(Digest, u64, Option<Platform>)>,
}

impl From<Summary1> for ManifestSummary {
    fn from(old: Summary1) -> Self {
        let Summary1 { size, media_type, image_id, config_size, platform, user, chain, layers, manifests } = old;
        Self { size, media_type, image_id, config_size, platform, user, chain, layers, manifests }
    }
}
