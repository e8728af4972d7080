//! Connections to PostgreSQL: how many, for how long, and what is done when one is lost.
//!
//! Every statement is a `&'static str`, prepared once for each connection. What only lists or names immutable things may be
//! asked of a read replica; all that a decision follows from is asked of the primary.
//!
//! # Invariants
//! - A list has everything that was acknowledged to anybody before it was asked for: the replica is asked for it only if it has
//!   replayed the log up to where the primary's ended just before.

use std::time::Duration;

use deadpool_postgres::{Client, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Transaction};
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Config, Row};

use crate::tls::MakeTls;
use crate::{Error, Result};

/// How a database is reached.
#[derive(Debug, Clone)]
pub struct DatabaseOptions {
    /// `postgres://USER:PASSWORD@HOST[,HOST…]/DATABASE?sslmode=require&target_session_attrs=read-write`, as libpq has it.
    pub url: String,
    /// A replica by streaming replication that may be asked for immutable things, and for lists when it has caught up.
    pub replica: Option<String>,
    /// Certificate authorities in PEM, instead of the system's.
    pub authorities: Option<Vec<u8>>,
    /// Connections to each of them at most. All gateways together must stay below the server's `max_connections`.
    pub connections: usize,
    /// How long a statement may take before the server breaks it off.
    pub statement_timeout: Duration,
}

impl DatabaseOptions {
    /// The usual limits.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            replica: None,
            authorities: None,
            connections: 16,
            statement_timeout: Duration::from_secs(10),
        }
    }
}

/// How long a request waits for a connection: of the pool, or a new one.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a transaction may be idle before the server ends it: its gateway is gone, and its locks are in the way.
const IDLE_TRANSACTION: Duration = Duration::from_secs(15);

/// How long a statement waits for rows that others have locked.
const LOCK: Duration = Duration::from_secs(5);

/// How often a transaction is tried that others break off.
const TRIES: usize = 5;

/// The database, and its replica.
#[derive(Clone)]
pub(crate) struct Database {
    primary: Pool,
    replica: Option<Pool>,
}

/// What a statement is given.
pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Database {
    /// Checks the options; connects when it is asked for something.
    pub(crate) fn new(options: &DatabaseOptions) -> Result<Self> {
        let replica = options.replica.as_deref().map(|url| pool("the replica's URL", url, options)).transpose()?;
        Ok(Self { primary: pool("the database's URL", &options.url, options)?, replica })
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(self.primary.get().await?)
    }

    /// Runs a statement that may be run twice: once more if the connection turns out to be lost.
    pub(crate) async fn query(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>> {
        match query(&self.primary, sql, params).await {
            Err(error) if error.is_closed() => query(&self.primary, sql, params).await,
            result => result,
        }
    }

    /// Like [`Database::query`], of the replica if there is one that answers. It may not know yet what is new, and may know still
    /// what is gone.
    pub(crate) async fn query_replica(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>> {
        if let Some(replica) = &self.replica {
            match query(replica, sql, params).await {
                Err(error) if error.is_temporary() => tracing::debug!(%error, "the replica does not answer"),
                result => return result,
            }
        }
        self.query(sql, params).await
    }

    /// Like [`Database::query`], of the replica if it has all that was committed until now. The primary is asked where its log
    /// ends, which costs it next to nothing, whatever there is to list.
    pub(crate) async fn query_current(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>> {
        if let Some(replica) = &self.replica {
            // Not where it was flushed to: `synchronous_commit` may be off.
            let end = self.query("SELECT pg_current_wal_insert_lsn()", &[]).await?;
            let end: PgLsn =
                end.first().map(|row| row.try_get(0)).transpose()?.unwrap_or_else(|| PgLsn::from(u64::MAX));
            match query_from(replica, end, sql, params).await {
                Ok(Some(rows)) => return Ok(rows),
                Ok(None) => tracing::debug!("the replica lags, or is none that streams"),
                Err(error) if error.is_temporary() => tracing::debug!(%error, "the replica does not answer"),
                Err(error) => return Err(error),
            }
        }
        self.query(sql, params).await
    }

    /// Whether what the replica does not know should be asked of the primary.
    pub(crate) const fn has_replica(&self) -> bool {
        self.replica.is_some()
    }

    /// At most one row.
    pub(crate) async fn query_opt(&self, sql: &'static str, params: Params<'_>) -> Result<Option<Row>> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Changes rows; returns how many.
    pub(crate) async fn execute(&self, sql: &'static str, params: Params<'_>) -> Result<u64> {
        let client = self.client().await?;
        let statement = client.prepare_cached(sql).await?;
        Ok(client.execute(&statement, params).await?)
    }
}

async fn query(pool: &Pool, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>> {
    let client = pool.get().await?;
    let statement = client.prepare_cached(sql).await?;
    Ok(client.query(&statement, params).await?)
}

/// Of a replica that has replayed the log up to there; `None` from one that has not.
async fn query_from(pool: &Pool, end: PgLsn, sql: &'static str, params: Params<'_>) -> Result<Option<Vec<Row>>> {
    let client = pool.get().await?;
    let reached = client.prepare_cached("SELECT coalesce(pg_last_wal_replay_lsn() >= $1, false)").await?;
    if !client.query_one(&reached, &[&end]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    // What this sees was replayed when it begins, which is now.
    let statement = client.prepare_cached(sql).await?;
    Ok(Some(client.query(&statement, params).await?))
}

/// Statements within a transaction, as constant as those outside.
pub(crate) trait Statements {
    async fn rows(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>>;
    async fn change(&self, sql: &'static str, params: Params<'_>) -> Result<u64>;
}

impl Statements for Transaction<'_> {
    async fn rows(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare_cached(sql).await?;
        Ok(self.query(&statement, params).await?)
    }

    async fn change(&self, sql: &'static str, params: Params<'_>) -> Result<u64> {
        let statement = self.prepare_cached(sql).await?;
        Ok(self.execute(&statement, params).await?)
    }
}

/// Tries `work` again while other transactions are in its way. It must begin its transaction anew each time.
macro_rules! again {
    ($work:expr) => {{
        let mut tries = 0;
        loop {
            tries += 1;
            match $work.await {
                Err(error) if error.is_conflict() && tries < $crate::database::tries() => {
                    let pause = rand::random_range(0..20 * tries as u64);
                    tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
                }
                result => break result,
            }
        }
    }};
}
pub(crate) use again;

pub(crate) const fn tries() -> usize {
    TRIES
}

fn pool(option: &'static str, url: &str, options: &DatabaseOptions) -> Result<Pool> {
    let mut config: Config = url.parse().map_err(|error| Error::Option { option, why: explain(&error) })?;
    let limits = format!(
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={}",
        options.statement_timeout.as_millis(),
        LOCK.as_millis(),
        IDLE_TRANSACTION.as_millis(),
    );
    let given = config.get_options().map(str::to_owned).unwrap_or_default();
    config.options(format!("{limits} {given}"));
    if config.get_application_name().is_none() {
        config.application_name("orlop registry");
    }
    config.connect_timeout(CONNECT).keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(20));
    let tls = MakeTls::new(options.authorities.as_deref())?;
    let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    Pool::builder(manager)
        .max_size(options.connections.max(2))
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT))
        .create_timeout(Some(CONNECT))
        .recycle_timeout(Some(CONNECT))
        .build()
        .map_err(|error| Error::Option { option, why: error.to_string() })
}

/// tokio-postgres has the reason as a source only.
fn explain(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
