//! The rows of uploads between two requests.
//!
//! A row has one writer at a time, named by a random token: every change of it says whose it is, so that a writer that was
//! taken for dead changes nothing any more. A writer is taken for dead when it has not said anything for [`WRITER_LIFE`].

use std::time::Duration;

use orlop_content::{IngestOptions, Status};
use orlop_oci::{Algorithm, Digest};
use tokio_postgres::Row;

use crate::blobs::{digest, timestamp, unsigned};
use crate::database::{Database, Statements as _, again};
use crate::{Error, Result};

/// For how long a writer is believed to be alive that says nothing.
pub(crate) const WRITER_LIFE: Duration = Duration::from_secs(60);

/// An upload as its row has it.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) algorithm: Algorithm,
    pub(crate) hash: Option<Vec<u8>>,
    pub(crate) upload: Option<String>,
    pub(crate) parts: Vec<String>,
    pub(crate) tail: Tail,
}

/// Where the bytes are that are not a whole part yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tail {
    /// In the row.
    Here(Vec<u8>),
    /// In an object.
    There(i64),
}

/// Who may go on with an upload.
pub(crate) enum Opened {
    /// What is there, and whether it is to be something else now: what is there belongs to no part of it.
    Yes {
        ingest: Box<Ingest>,
        restart: bool,
    },
    Locked,
}

#[derive(Clone)]
pub(crate) struct Ingests {
    database: Database,
}

/// Named one by one: a later version may add others while this one runs.
macro_rules! columns {
    () => {
        "id, reference, total, expected, started_at, updated_at, size, algorithm, hash, upload, parts, tail, tail_number"
    };
}

const ALL: &str = concat!("SELECT ", columns!(), " FROM ingests");
const ONE: &str = concat!("SELECT ", columns!(), " FROM ingests WHERE sha256(reference) = sha256($1)");
const STALE: &str =
    concat!("SELECT ", columns!(), " FROM ingests WHERE updated_at < now() - make_interval(secs => $1)");
const LOCK: &str = concat!(
    "SELECT ",
    columns!(),
    ", writer IS NULL OR writer_until < now() FROM ingests WHERE sha256(reference) = sha256($1) FOR UPDATE"
);

impl Ingests {
    pub(crate) const fn new(database: Database) -> Self {
        Self { database }
    }

    /// Opens an upload for a writer: a new one, or one that is there and has no writer that lives.
    pub(crate) async fn open(&self, options: &IngestOptions, writer: &str) -> Result<Opened> {
        again!(self.try_open(options, writer))
    }

    async fn try_open(&self, options: &IngestOptions, writer: &str) -> Result<Opened> {
        let reference = options.reference.as_bytes();
        let algorithm = options.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm).as_str();
        let mut client = self.database.client().await?;
        let transaction = client.transaction().await?;
        let id = format!("{:032x}", rand::random::<u128>());
        let insert =
            "INSERT INTO ingests (id, reference, total, algorithm) VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING";
        transaction.change(insert, &[&id, &reference, &algorithm]).await?;
        let rows = transaction.rows(LOCK, &[&reference]).await?;
        let Some(row) = rows.first() else {
            return Err(Error::Nonsense { what: "no ingest", value: options.reference.clone() });
        };
        if !row.try_get::<_, bool>(13)? {
            transaction.rollback().await?;
            return Ok(Opened::Locked);
        }
        let mut ingest = ingest(row)?;
        let restart = ingest.status.is_of_another_total(options.total);
        if options.total != 0 {
            ingest.status.total = options.total;
        }
        ingest.status.expected = options.expected.clone().or(ingest.status.expected);
        let take = "UPDATE ingests SET writer = $2, writer_until = now() + make_interval(secs => $3), total = $4, \
                    expected = $5 WHERE id = $1";
        let life = WRITER_LIFE.as_secs_f64();
        let (total, expected) = (ingest.status.total as i64, ingest.status.expected.as_ref().map(Digest::as_str));
        transaction.change(take, &[&ingest.id, &writer, &life, &total, &expected]).await?;
        transaction.commit().await?;
        Ok(Opened::Yes { ingest: Box::new(ingest), restart })
    }

    pub(crate) async fn find(&self, reference: &str) -> Result<Option<Ingest>> {
        self.database.query_opt(ONE, &[&reference.as_bytes()]).await?.as_ref().map(ingest).transpose()
    }

    pub(crate) async fn all(&self) -> Result<Vec<Ingest>> {
        self.database.query(ALL, &[]).await?.iter().map(ingest).collect()
    }

    /// Those that nobody has written to for a while.
    pub(crate) async fn stale(&self, age: Duration) -> Result<Vec<Ingest>> {
        self.database.query(STALE, &[&age.as_secs_f64()]).await?.iter().map(ingest).collect()
    }

    /// Which of these uploads have a row.
    pub(crate) async fn known(&self, ids: &[String]) -> Result<Vec<String>> {
        let rows = self.database.query("SELECT id FROM ingests WHERE id = ANY($1)", &[&ids]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Says that the writer lives. `false` if the upload is not his any more.
    pub(crate) async fn live(&self, id: &str, writer: &str) -> Result<bool> {
        let sql = "UPDATE ingests SET writer_until = now() + make_interval(secs => $3), updated_at = now() \
                   WHERE id = $1 AND writer = $2";
        Ok(self.database.execute(sql, &[&id, &writer, &WRITER_LIFE.as_secs_f64()]).await? > 0)
    }

    /// Names the multipart upload before it has any part, so that it can be dropped whatever happens.
    pub(crate) async fn begin(&self, id: &str, writer: &str, upload: &str) -> Result<bool> {
        let sql = "UPDATE ingests SET upload = $3, writer_until = now() + make_interval(secs => $4), \
                   updated_at = now() WHERE id = $1 AND writer = $2";
        Ok(self.database.execute(sql, &[&id, &writer, &upload, &WRITER_LIFE.as_secs_f64()]).await? > 0)
    }

    /// Writes down how far an upload has come. With `free`, any writer may go on with it.
    pub(crate) async fn save(&self, ingest: &Ingest, writer: &str, free: bool) -> Result<bool> {
        let (tail, number) = match &ingest.tail {
            Tail::Here(bytes) => (Some(bytes.as_slice()), None),
            Tail::There(number) => (None, Some(*number)),
        };
        let sql = "UPDATE ingests SET size = $3, algorithm = $4, hash = $5, upload = $6, parts = $7, tail = $8, \
                   tail_number = $9, updated_at = now(), writer = CASE WHEN $10 THEN NULL ELSE writer END \
                   WHERE id = $1 AND writer = $2";
        let size = ingest.status.offset as i64;
        let algorithm = ingest.algorithm.as_str();
        let saved = self
            .database
            .execute(
                sql,
                &[
                    &ingest.id,
                    &writer,
                    &size,
                    &algorithm,
                    &ingest.hash,
                    &ingest.upload,
                    &ingest.parts,
                    &tail,
                    &number,
                    &free,
                ],
            )
            .await?;
        Ok(saved > 0)
    }

    /// Drops the row of an upload; of this writer's, if one is named. Returns what it was.
    pub(crate) async fn remove(&self, id: &str, writer: Option<&str>) -> Result<bool> {
        let sql = "DELETE FROM ingests WHERE id = $1 AND ($2::text IS NULL OR writer = $2)";
        Ok(self.database.execute(sql, &[&id, &writer]).await? > 0)
    }
}

fn ingest(row: &Row) -> Result<Ingest> {
    let reference: &[u8] = row.try_get(1)?;
    let status = Status {
        reference: String::from_utf8_lossy(reference).into_owned(),
        offset: unsigned("a size", row.try_get(6)?)?,
        total: unsigned("a size", row.try_get(2)?)?,
        expected: row.try_get::<_, Option<&str>>(3)?.map(digest).transpose()?,
        started_at: timestamp(row.try_get(4)?)?,
        updated_at: timestamp(row.try_get(5)?)?,
    };
    let algorithm: &str = row.try_get(7)?;
    let algorithm = Algorithm::from_name(algorithm)
        .ok_or_else(|| Error::Nonsense { what: "an algorithm", value: algorithm.to_owned() })?;
    let tail = match row.try_get::<_, Option<i64>>(12)? {
        Some(number) => Tail::There(number),
        None => Tail::Here(row.try_get::<_, Option<Vec<u8>>>(11)?.unwrap_or_default()),
    };
    Ok(Ingest {
        id: row.try_get(0)?,
        status,
        algorithm,
        hash: row.try_get(8)?,
        upload: row.try_get(9)?,
        parts: row.try_get(10)?,
        tail,
    })
}
