//! The rows of blobs: the statements of [`crate::protocol`], and reading what they say.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use orlop_content::Info;
use orlop_oci::Digest;
use tokio_postgres::Row;

use crate::database::{Database, Statements as _, again};
use crate::{Error, Result};

/// A blob that is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) info: Info,
    pub(crate) generation: i64,
}

/// What became of an upload that was to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    Live,
    /// Another generation was live, and is held now.
    Other,
    /// The reservation is gone: it was not held for long enough.
    Gone,
}

/// The rows, and for how long a push holds them.
#[derive(Clone)]
pub(crate) struct Blobs {
    database: Database,
    /// In seconds, for PostgreSQL, whose clock is everybody's.
    lease: f64,
}

impl Blobs {
    pub(crate) const fn new(database: Database, lease: Duration) -> Self {
        Self { database, lease: lease.as_secs_f64() }
    }

    /// The live generation.
    pub(crate) async fn live(&self, digest: &Digest) -> Result<Option<Live>> {
        let sql = "SELECT digest, generation, size, created_at FROM blobs WHERE digest = $1 AND state = 'live'";
        self.database.query_opt(sql, &[&digest.as_str()]).await?.as_ref().map(live).transpose()
    }

    /// All that are live.
    pub(crate) async fn all(&self) -> Result<Vec<Live>> {
        let sql = "SELECT digest, generation, size, created_at FROM blobs WHERE state = 'live'";
        self.database.query(sql, &[]).await?.iter().map(live).collect()
    }

    /// *Find*: holds the live generation, if there is one.
    pub(crate) async fn hold(&self, digest: &Digest) -> Result<bool> {
        let sql = "UPDATE blobs SET held_until = greatest(held_until, now() + make_interval(secs => $2)) \
                   WHERE digest = $1 AND state = 'live'";
        Ok(self.database.execute(sql, &[&digest.as_str(), &self.lease]).await? > 0)
    }

    /// *Reserve*: a new generation, under whose key nothing was ever written.
    pub(crate) async fn reserve(&self, digest: &Digest, size: u64) -> Result<i64> {
        let generation = rand::random_range(1..=i64::MAX);
        let sql = "INSERT INTO blobs (digest, generation, state, size, held_until) \
                   VALUES ($1, $2, 'reserved', $3, now() + make_interval(secs => $4))";
        self.database.execute(sql, &[&digest.as_str(), &generation, &(size as i64), &self.lease]).await?;
        Ok(generation)
    }

    /// Whether an upload still has its reservation. The object of one that is gone may be, too.
    pub(crate) async fn is_reserved(&self, digest: &Digest, generation: i64) -> Result<bool> {
        let sql = "SELECT FROM blobs WHERE digest = $1 AND generation = $2 AND state = 'reserved'";
        Ok(self.database.query_opt(sql, &[&digest.as_str(), &generation]).await?.is_some())
    }

    /// *Publish*.
    pub(crate) async fn publish(&self, digest: &Digest, generation: i64) -> Result<Published> {
        again!(self.try_publish(digest, generation))
    }

    async fn try_publish(&self, digest: &Digest, generation: i64) -> Result<Published> {
        let mut client = self.database.client().await?;
        let transaction = client.transaction().await?;
        let own = "SELECT state FROM blobs WHERE digest = $1 AND generation = $2 FOR UPDATE";
        let own = transaction.rows(own, &[&digest.as_str(), &generation]).await?;
        let state: Option<&str> = own.first().map(|row| row.try_get(0)).transpose()?;
        match state {
            Some("reserved") => {}
            // A commit whose acknowledgement was lost.
            Some("live") => return Ok(Published::Live),
            _ => return Ok(Published::Gone),
        }
        let hold = "UPDATE blobs SET held_until = greatest(held_until, now() + make_interval(secs => $2)) \
                    WHERE digest = $1 AND state = 'live'";
        let published = if transaction.change(hold, &[&digest.as_str(), &self.lease]).await? > 0 {
            // Nobody ever saw this one: its object may go at once.
            let lose = "UPDATE blobs SET state = 'deleting', delete_at = now() WHERE digest = $1 AND generation = $2";
            transaction.change(lose, &[&digest.as_str(), &generation]).await?;
            Published::Other
        } else {
            // That no other is live is seen to by a unique index: who is slower begins this transaction anew.
            let win = "UPDATE blobs SET state = 'live', held_until = now() + make_interval(secs => $3) \
                       WHERE digest = $1 AND generation = $2";
            transaction.change(win, &[&digest.as_str(), &generation, &self.lease]).await?;
            Published::Live
        };
        transaction.commit().await?;
        Ok(published)
    }

    /// Gives a blob up, whatever refers to it is checked by nobody: what a content store is asked to delete. Its links go.
    pub(crate) async fn give_up(&self, digest: &Digest, delete_after: Duration) -> Result<bool> {
        let mut client = self.database.client().await?;
        let transaction = client.transaction().await?;
        let sql = "UPDATE blobs SET state = 'deleting', delete_at = now() + make_interval(secs => $2) \
                   WHERE digest = $1 AND state = 'live' RETURNING generation";
        let rows = transaction.rows(sql, &[&digest.as_str(), &delete_after.as_secs_f64()]).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        let generation: i64 = row.try_get(0)?;
        let links = "DELETE FROM links WHERE digest = $1 AND generation = $2";
        transaction.change(links, &[&digest.as_str(), &generation]).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

fn live(row: &Row) -> Result<Live> {
    let created_at = timestamp(row.try_get(3)?)?;
    let info = Info {
        digest: digest(row.try_get(0)?)?,
        size: unsigned("a size", row.try_get(2)?)?,
        created_at,
        updated_at: created_at,
    };
    Ok(Live { info, generation: row.try_get(1)? })
}

pub(crate) fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|_| Error::Nonsense { what: "a digest", value: text.to_owned() })
}

pub(crate) fn unsigned(what: &'static str, number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| Error::Nonsense { what, value: number.to_string() })
}

pub(crate) fn timestamp(time: SystemTime) -> Result<Timestamp> {
    Timestamp::try_from(time).map_err(|error| Error::Nonsense { what: "a time", value: error.to_string() })
}
