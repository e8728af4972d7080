//! The schema of the database, brought up to date by whichever gateway comes first.
//!
//! Each step is a transaction under an advisory lock, so that gateways that start together wait for each other. Steps only
//! add: a gateway of the version before goes on working on the new schema, while gateways are replaced one by one. A step
//! says from which version of the schema on a program may use what it made; a program that is older does not start.

use deadpool_postgres::Transaction;

use crate::database::{Database, Statements as _, again};
use crate::{Error, Result};

/// What is done in turn. The number of a step is its place, from 1.
const STEPS: &[Step] = &[Step { sql: include_str!("../migrations/0001.sql"), oldest: 1 }];

struct Step {
    sql: &'static str,
    /// Programs that know this schema, and later ones, may use the database from here on.
    oldest: i32,
}

/// Drawn once; nobody else on this database uses it.
const LOCK: i64 = 0x6f72_6c6f_7001;

/// How long a start waits for another gateway that changes the schema: the time its statements may take.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '5min'; SET LOCAL statement_timeout = '10min'";

/// Brings the schema up to date; returns its number.
pub(crate) async fn migrate(database: &Database) -> Result<i32> {
    loop {
        let found = again!(step(database))?;
        let known = STEPS.len() as i32;
        if found.version > known && found.oldest > known {
            return Err(Error::Schema { found: found.version, known });
        }
        if found.version >= known {
            return Ok(found.version);
        }
    }
}

struct Found {
    version: i32,
    oldest: i32,
}

/// Takes one step, if one is due; returns what is there then.
async fn step(database: &Database) -> Result<Found> {
    let mut client = database.client().await?;
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK_WAIT).await?;
    transaction.change("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    transaction
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS orlop_schema (version integer PRIMARY KEY, oldest integer NOT NULL, \
             applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .await?;
    let found = newest(&transaction).await?;
    let Some(next) = usize::try_from(found.version).ok().and_then(|version| STEPS.get(version)) else {
        return Ok(found);
    };
    transaction.batch_execute(next.sql).await?;
    let version = found.version + 1;
    transaction.change("INSERT INTO orlop_schema (version, oldest) VALUES ($1, $2)", &[&version, &next.oldest]).await?;
    transaction.commit().await?;
    tracing::info!(version, "the database has a new schema");
    Ok(Found { version, oldest: next.oldest })
}

async fn newest(transaction: &Transaction<'_>) -> Result<Found> {
    let rows =
        transaction.rows("SELECT coalesce(max(version), 0), coalesce(max(oldest), 0) FROM orlop_schema", &[]).await?;
    let row = rows.first().ok_or(Error::Nonsense { what: "a schema", value: String::new() })?;
    Ok(Found { version: row.try_get(0)?, oldest: row.try_get(1)? })
}
