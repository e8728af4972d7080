-- From format 1 to format 2: listing reads small indexes and compact summaries. What the old summaries say is written
-- anew by the program, which then drops them.

DROP INDEX blob_digest;
CREATE INDEX blob_digest ON blob (digest, namespace, size);
CREATE INDEX snapshot_usage ON snapshot (namespace, driver, name, bytes) WHERE kind = 'committed' AND bytes IS NOT NULL;

ALTER TABLE manifest_summary RENAME TO manifest_summary_1;
CREATE TABLE manifest_summary (
  digest     TEXT PRIMARY KEY,
  body       BLOB NOT NULL
) WITHOUT ROWID;
