-- Format 5 of meta.db (PRAGMA user_version). Times are nanoseconds since 1970 UTC. Labels are a JSON object.

CREATE TABLE namespace (
  name    TEXT PRIMARY KEY,
  labels  TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;

CREATE TABLE image (
  namespace   TEXT NOT NULL,
  name        TEXT NOT NULL,
  digest      TEXT NOT NULL,             -- target
  media_type  TEXT NOT NULL,
  size        INTEGER NOT NULL,
  annotations TEXT NOT NULL DEFAULT '{}',
  labels      TEXT NOT NULL DEFAULT '{}',
  expires     INTEGER,                   -- from containerd.io/gc.expire
  created     INTEGER NOT NULL,
  updated     INTEGER NOT NULL,
  PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
CREATE INDEX image_target ON image (namespace, digest);
CREATE INDEX image_expires ON image (expires) WHERE expires IS NOT NULL;

CREATE TABLE blob (                      -- a blob as one namespace sees it
  namespace TEXT NOT NULL,
  digest    TEXT NOT NULL,
  size      INTEGER NOT NULL,
  labels    TEXT NOT NULL DEFAULT '{}',
  root      INTEGER NOT NULL DEFAULT 0,  -- 1: labelled containerd.io/gc.root
  created   INTEGER NOT NULL,
  updated   INTEGER NOT NULL,
  PRIMARY KEY (namespace, digest)
) WITHOUT ROWID;
CREATE INDEX blob_digest ON blob (digest, namespace, size); -- all that listing reads of a blob
CREATE INDEX blob_root ON blob (namespace, digest) WHERE root = 1;

CREATE TABLE ingest (                    -- a write in progress; a root for its digest until it expires
  namespace TEXT NOT NULL,
  ref       TEXT NOT NULL,               -- the client's name
  backend   TEXT NOT NULL UNIQUE,        -- the raw store's name
  expected  TEXT,                        -- digest, as soon as it is known; always set before the rename
  expires   INTEGER,                     -- NULL: as long as a lease holds it
  created   INTEGER NOT NULL,
  PRIMARY KEY (namespace, ref)
) WITHOUT ROWID;
CREATE INDEX ingest_expires ON ingest (expires) WHERE expires IS NOT NULL;
CREATE INDEX ingest_expected ON ingest (expected) WHERE expected IS NOT NULL;

CREATE TABLE lease (
  namespace TEXT NOT NULL,
  id        TEXT NOT NULL,
  labels    TEXT NOT NULL DEFAULT '{}',
  flat      INTEGER NOT NULL DEFAULT 0,  -- from containerd.io/gc.flat
  expires   INTEGER,                     -- from containerd.io/gc.expire
  created   INTEGER NOT NULL,
  PRIMARY KEY (namespace, id)
) WITHOUT ROWID;
CREATE INDEX lease_expires ON lease (expires) WHERE expires IS NOT NULL;

CREATE TABLE lease_resource (
  namespace TEXT NOT NULL,
  lease     TEXT NOT NULL,
  kind      TEXT NOT NULL,               -- content, ingests, images, snapshots/<driver>
  name      TEXT NOT NULL,
  PRIMARY KEY (namespace, lease, kind, name)
) WITHOUT ROWID;
CREATE INDEX lease_resource_target ON lease_resource (namespace, kind, name);

CREATE TABLE snapshot (
  id        INTEGER PRIMARY KEY,         -- the driver's number, from sequence 'snapshot'; never used twice
  namespace TEXT NOT NULL,
  driver    TEXT NOT NULL,
  name      TEXT NOT NULL,               -- the key
  parent    INTEGER REFERENCES snapshot (id),
  kind      TEXT NOT NULL,               -- active, view, committed
  labels    TEXT NOT NULL DEFAULT '{}',
  root      INTEGER NOT NULL DEFAULT 0,  -- 1: labelled containerd.io/gc.root
  bytes     INTEGER,                     -- known once committed
  inodes    INTEGER,
  created   INTEGER NOT NULL,
  updated   INTEGER NOT NULL,
  UNIQUE (namespace, driver, name)
);
CREATE INDEX snapshot_parent ON snapshot (parent) WHERE parent IS NOT NULL;
CREATE INDEX snapshot_root ON snapshot (id) WHERE root = 1;
CREATE INDEX snapshot_usage ON snapshot (namespace, driver, name, bytes) WHERE kind = 'committed' AND bytes IS NOT NULL;

CREATE TABLE container (                 -- as a record; a root, which keeps its snapshot
  namespace    TEXT NOT NULL,
  id           TEXT NOT NULL,
  labels       TEXT NOT NULL DEFAULT '{}',
  image        TEXT NOT NULL,            -- for information
  runtime      TEXT NOT NULL,
  snapshotter  TEXT NOT NULL,            -- may be empty, as the key and the sandbox
  snapshot_key TEXT NOT NULL,
  sandbox      TEXT NOT NULL,
  created      INTEGER NOT NULL,
  updated      INTEGER NOT NULL,
  PRIMARY KEY (namespace, id)
) WITHOUT ROWID;

CREATE TABLE container_message (         -- what only clients understand
  namespace TEXT NOT NULL,
  container TEXT NOT NULL,
  field     TEXT NOT NULL,               -- spec, runtime.options, extensions.<key>
  type_url  TEXT NOT NULL,
  value     BLOB NOT NULL,
  PRIMARY KEY (namespace, container, field)
);

CREATE TABLE mount (                     -- mounts made for a client: an activation
  namespace TEXT NOT NULL,
  name      TEXT NOT NULL,
  id        INTEGER NOT NULL UNIQUE,     -- its directory below ROOT/mounts, from sequence 'mount'
  labels    TEXT NOT NULL,
  active    TEXT NOT NULL,               -- JSON: what was mounted, and where
  system    TEXT NOT NULL,               -- JSON: what is left to the client
  created   INTEGER NOT NULL,
  PRIMARY KEY (namespace, name)
) WITHOUT ROWID;

CREATE TABLE sequence (                  -- numbers given out, whether or not what they were for came to be; as `condition` the
                                         -- time of the last collection, from which on conditions may have turned; as `content`
                                         -- how often blobs were dropped or relabelled; as `followed`, `followed-rules`,
                                         -- `followed-whole` how far hash references are in order: src/progress.rs
  name  TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO sequence VALUES ('snapshot', 0);

-- What garbage collection knows of. An object is (namespace, kind, name); kind is content, images, leases, ingests,
-- containers, mounts or snapshots/<driver>. Edges follow from labels, image targets, snapshot parents, containers' snapshots and an ingest's expected digest, and are
-- rewritten in the transaction that changes those. What a lease holds is in lease_resource alone. Either end of an edge
-- may not exist (yet): `from` too, where the edge is stated by a back reference.
CREATE TABLE edge (
  namespace TEXT NOT NULL,
  from_kind TEXT NOT NULL,
  from_name TEXT NOT NULL,
  to_kind   TEXT NOT NULL,
  to_name   TEXT NOT NULL,
  back      INTEGER NOT NULL,            -- 1: stated by a gc.bref label of `to`; 0: by `from`
  label     INTEGER NOT NULL,            -- 1: stated by a label, which flat leases do not follow
  PRIMARY KEY (namespace, from_kind, from_name, to_kind, to_name, back, label)
) WITHOUT ROWID;
CREATE INDEX edge_to ON edge (namespace, to_kind, to_name);

CREATE TABLE condition (                 -- edges to snapshots that are there at times: `gc.cond` labels of images and blobs
  namespace TEXT NOT NULL,
  from_kind TEXT NOT NULL,
  from_name TEXT NOT NULL,
  to_kind   TEXT NOT NULL,               -- snapshots/<driver>
  to_name   TEXT NOT NULL,
  newer     INTEGER NOT NULL,            -- 1: while less than `age` has passed since a use of the snapshot; 0: once more has
  age       INTEGER NOT NULL,            -- nanoseconds
  PRIMARY KEY (namespace, from_kind, from_name, to_kind, to_name, newer, age)
) WITHOUT ROWID;
CREATE INDEX condition_to ON condition (namespace, to_kind, to_name);
CREATE INDEX condition_age ON condition (age);

CREATE TABLE used (                      -- when snapshots were used, from their `gc.cond.value-usedat` labels
  namespace TEXT NOT NULL,
  kind      TEXT NOT NULL,
  name      TEXT NOT NULL,
  at        INTEGER NOT NULL,
  PRIMARY KEY (namespace, kind, name, at)
) WITHOUT ROWID;
CREATE INDEX used_at ON used (at);

CREATE TABLE suspect (                   -- perhaps kept by nothing any more
  namespace TEXT NOT NULL,
  kind      TEXT NOT NULL,
  name      TEXT NOT NULL,
  PRIMARY KEY (namespace, kind, name)
) WITHOUT ROWID;

CREATE TABLE doomed (                    -- bytes without a row: finished by the next collection after `after`
  kind      TEXT NOT NULL,               -- content, ingest, mount, snapshots/<driver>
  name      TEXT NOT NULL,               -- digest, backend ref, id
  trash     TEXT,                        -- into this trash entry; NULL: for good
  after     INTEGER NOT NULL DEFAULT 0,  -- a snapshot being made has such a row until its own replaces it; before this
                                         -- time only its maker may touch it, from then on only the collector
  PRIMARY KEY (kind, name)
) WITHOUT ROWID;

CREATE TABLE history (
  seq       INTEGER PRIMARY KEY,
  at        INTEGER NOT NULL,
  actor     TEXT NOT NULL,
  action    TEXT NOT NULL,               -- create, update, delete
  namespace TEXT NOT NULL,
  name      TEXT NOT NULL,
  old       TEXT,                        -- target digest before
  new       TEXT,                        -- target digest after
  detail    TEXT NOT NULL DEFAULT '{}'   -- media type, size and labels after: enough to rebuild the record
);
CREATE INDEX history_name ON history (namespace, name, seq);

CREATE TABLE manifest_summary (          -- what listing needs of a manifest, so that none is read twice
  digest     TEXT PRIMARY KEY,
  body       BLOB NOT NULL               -- src/summary/encoding.rs says how it is written
) WITHOUT ROWID;

CREATE TABLE trash (
  id       TEXT PRIMARY KEY,
  created  INTEGER NOT NULL,
  reason   TEXT NOT NULL,                -- the command, for people
  bytes    INTEGER NOT NULL,
  rows     TEXT NOT NULL                 -- JSON: every row removed, so that undo can put it back
) WITHOUT ROWID;

INSERT INTO namespace VALUES ('test', '{}');
INSERT INTO image VALUES ('test', 'docker.io/library/a:1', 'sha256:1bc04b5291c26a46d918139138b992d2de976d6851d0893b0476b85bfbdfc6e6', 'application/vnd.oci.image.index.v1+json', 5, '{}', '{"k":"v"}', NULL, 1700000000000000000, 1700000000000000001);
INSERT INTO edge VALUES ('test', 'images', 'docker.io/library/a:1', 'content', 'sha256:1bc04b5291c26a46d918139138b992d2de976d6851d0893b0476b85bfbdfc6e6', 0, 0);
INSERT INTO blob VALUES ('test', 'sha256:1bc04b5291c26a46d918139138b992d2de976d6851d0893b0476b85bfbdfc6e6', 5, '{}', 0, 1700000000000000000, 1700000000000000000);
INSERT INTO blob VALUES ('test', 'sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f', 8, '{"containerd.io/gc.cond.snapshot.plain":"usedat<1000000h|web"}', 1, 1700000000000000000, 1700000000000000000);
INSERT INTO blob VALUES ('test', 'sha256:b79606fb3afea5bd1609ed40b622142f1c98125abcfe89a76a661b0e8e343910', 6, '{"containerd.io/gc.ref.mount":"a mount"}', 0, 1700000000000000000, 1700000000000000000);
INSERT INTO blob VALUES ('test', 'sha256:54db133a109fd7f0d6eb72da16df1af078f2bf86e917ae3c780a13d811d6aa6f', 7, '{}', 0, 1700000000000000000, 1700000000000000000);
INSERT INTO blob VALUES ('test', 'sha256:0c6eea24ed5f3274df121af2d789e43839b3bcfb328db8deb86b46896d57be67', 9, '{}', 0, 1700000000000000000, 1700000000000000000);
INSERT INTO snapshot VALUES (1, 'test', 'plain', 'sha256:70b8af40232fb4d35d2a21e61ad21f60e2e55035535cb16c1dc9f312240e5c94', NULL, 'committed', '{}', 0, 70, 2, 1700000000000000000, 1700000000000000000);
INSERT INTO snapshot VALUES (2, 'test', 'plain', 'sha256:47f1d0f2abf5c8445d60fb61348e00b39344f0cf356d725652291a9308af40f5', 1, 'committed', '{}', 0, 90, 3, 1700000000000000000, 1700000000000000000);
INSERT INTO snapshot VALUES (3, 'test', 'plain', 'web', 2, 'active', '{"containerd.io/gc.cond.value-usedat":"2033-05-18T03:00:00Z"}', 0, NULL, NULL, 1700000000000000000, 1700000000000000000);
INSERT INTO edge VALUES ('test', 'snapshots/plain', 'sha256:47f1d0f2abf5c8445d60fb61348e00b39344f0cf356d725652291a9308af40f5', 'snapshots/plain', 'sha256:70b8af40232fb4d35d2a21e61ad21f60e2e55035535cb16c1dc9f312240e5c94', 0, 0);
INSERT INTO edge VALUES ('test', 'snapshots/plain', 'web', 'snapshots/plain', 'sha256:47f1d0f2abf5c8445d60fb61348e00b39344f0cf356d725652291a9308af40f5', 0, 0);

INSERT INTO condition VALUES ('test', 'content', 'sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f', 'snapshots/plain', 'web', 1, 3600000000000000000);
INSERT INTO used VALUES ('test', 'snapshots/plain', 'web', 1999998000000000000);
INSERT INTO mount VALUES ('test', 'a mount', 1, '{}', '[]', '[]', 1700000000000000000);
INSERT INTO edge VALUES ('test', 'content', 'sha256:b79606fb3afea5bd1609ed40b622142f1c98125abcfe89a76a661b0e8e343910', 'mounts', 'a mount', 0, 1);

PRAGMA application_id = 1869769840;
PRAGMA user_version = 5;
PRAGMA journal_mode = WAL;
