-- What registry gateways share. Names of repositories, tags and digests compare by bytes, as the specification lists them.

CREATE TABLE identity (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id text NOT NULL DEFAULT gen_random_uuid()::text,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO identity DEFAULT VALUES;

CREATE TABLE blobs (
    digest text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('reserved', 'live', 'deleting')),
    size bigint NOT NULL CHECK (size >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The lease: until then nobody collects it.
    held_until timestamptz NOT NULL,
    -- When it is `deleting`: not before then does the object go.
    delete_at timestamptz,
    PRIMARY KEY (digest, generation)
);
CREATE UNIQUE INDEX blobs_one_live ON blobs (digest) WHERE state = 'live';
CREATE INDEX blobs_to_collect ON blobs (held_until) WHERE state <> 'deleting';
CREATE INDEX blobs_to_delete ON blobs (delete_at) WHERE state = 'deleting';

CREATE TABLE repositories (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- The repository has the blob. Not a reference: the collector takes links along with a blob that no manifest needs.
CREATE TABLE links (
    repository bigint NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    digest text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    linked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository, digest),
    FOREIGN KEY (digest, generation) REFERENCES blobs (digest, generation)
);
CREATE INDEX links_of_blob ON links (digest, generation);

CREATE TABLE manifests (
    repository bigint NOT NULL REFERENCES repositories (id),
    digest text COLLATE "C" NOT NULL,
    -- Its own bytes are a blob, which it keeps.
    generation bigint NOT NULL,
    media_type text NOT NULL,
    size bigint NOT NULL,
    subject text COLLATE "C",
    artifact_type text,
    annotations text NOT NULL,
    children text[] NOT NULL,
    elsewhere text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository, digest),
    FOREIGN KEY (digest, generation) REFERENCES blobs (digest, generation)
);
CREATE INDEX manifests_of_blob ON manifests (digest, generation);
CREATE INDEX manifests_of_subject ON manifests (repository, subject) WHERE subject IS NOT NULL;

-- What a manifest refers to, as far as it is here: this keeps blobs.
CREATE TABLE manifest_blobs (
    repository bigint NOT NULL,
    manifest text COLLATE "C" NOT NULL,
    digest text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    PRIMARY KEY (repository, manifest, digest),
    FOREIGN KEY (repository, manifest) REFERENCES manifests (repository, digest) ON DELETE CASCADE,
    FOREIGN KEY (digest, generation) REFERENCES blobs (digest, generation)
);
CREATE INDEX manifest_blobs_of_blob ON manifest_blobs (digest, generation);

-- Every change of any tag takes the next version, so that a tag that was deleted and made again is told from the old one.
CREATE SEQUENCE tag_versions;
CREATE TABLE tags (
    repository bigint NOT NULL REFERENCES repositories (id),
    name text COLLATE "C" NOT NULL,
    manifest text COLLATE "C" NOT NULL,
    version bigint NOT NULL DEFAULT nextval('tag_versions'),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository, name),
    FOREIGN KEY (repository, manifest) REFERENCES manifests (repository, digest) ON DELETE CASCADE
);
CREATE INDEX tags_of_manifest ON tags (repository, manifest);

-- Uploads, as they are between two requests. Refs may have any bytes.
CREATE TABLE ingests (
    id text COLLATE "C" PRIMARY KEY,
    reference bytea NOT NULL,
    total bigint NOT NULL,
    expected text COLLATE "C",
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- The writer that has it, and until when it is believed to be alive.
    writer text COLLATE "C",
    writer_until timestamptz,
    size bigint NOT NULL DEFAULT 0,
    -- The state of the hash over those bytes.
    algorithm text NOT NULL DEFAULT 'sha256',
    hash bytea,
    -- The multipart upload of the object `data`, and what the bucket called its parts.
    upload text,
    parts text[] NOT NULL DEFAULT '{}',
    -- What is not a whole part yet: here if it is small, else in the object `tail-<n>`.
    tail bytea,
    tail_number bigint
);
-- Refs may be longer than an index takes.
CREATE UNIQUE INDEX ingests_of_reference ON ingests (sha256(reference));
CREATE INDEX ingests_by_age ON ingests (updated_at);
