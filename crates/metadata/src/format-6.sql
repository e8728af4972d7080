-- From format 5 to format 6: damage that was found. A table alone.

CREATE TABLE damage (
  kind       TEXT NOT NULL,
  name       TEXT NOT NULL,
  fault      TEXT NOT NULL,
  detail     TEXT NOT NULL,
  quarantine TEXT,
  found      INTEGER NOT NULL,
  PRIMARY KEY (kind, name)
) WITHOUT ROWID;
