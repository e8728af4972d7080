-- From format 2 to format 3: containers.

CREATE TABLE container (
  namespace    TEXT NOT NULL,
  id           TEXT NOT NULL,
  labels       TEXT NOT NULL DEFAULT '{}',
  image        TEXT NOT NULL,
  runtime      TEXT NOT NULL,
  snapshotter  TEXT NOT NULL,
  snapshot_key TEXT NOT NULL,
  sandbox      TEXT NOT NULL,
  created      INTEGER NOT NULL,
  updated      INTEGER NOT NULL,
  PRIMARY KEY (namespace, id)
) WITHOUT ROWID;

CREATE TABLE container_message (
  namespace TEXT NOT NULL,
  container TEXT NOT NULL,
  field     TEXT NOT NULL,
  type_url  TEXT NOT NULL,
  value     BLOB NOT NULL,
  PRIMARY KEY (namespace, container, field)
);
