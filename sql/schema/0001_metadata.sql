-- The metadata of the control plane, for CockroachDB and PostgreSQL. One statement a step, each repeatable.
-- Times are given by control's clock, never by now(). Counters are rows, numbers are max + 1 in the transaction that inserts.

-- The row that every announcing write takes the next number from (targets, moves, revocations): replicas read what
-- has a higher epoch than the one they saw last. `generation` counts decisions about targets.
CREATE TABLE IF NOT EXISTS epochs (
    id INT8 PRIMARY KEY CHECK (id = 1),
    epoch INT8 NOT NULL,
    generation INT8 NOT NULL
);

INSERT INTO epochs (id, epoch, generation) VALUES (1, 0, 0) ON CONFLICT (id) DO NOTHING;

CREATE TABLE IF NOT EXISTS groups (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name TEXT NOT NULL UNIQUE,
    release_id UUID,
    generation INT8 NOT NULL DEFAULT 0,
    epoch INT8 NOT NULL DEFAULT 0,
    created_at TIMESTAMPTZ NOT NULL
);

-- A node's inventory columns say what it last reported; the target is its group's release.
-- removed_at keeps the row for the logs; a removed node's name is free again (removed nodes get name || '~' || id).
CREATE TABLE IF NOT EXISTS nodes (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name TEXT NOT NULL UNIQUE,
    labels JSONB NOT NULL DEFAULT '{}',
    capabilities JSONB NOT NULL DEFAULT '{}',
    protocol INT8 NOT NULL DEFAULT 1,
    group_id UUID NOT NULL REFERENCES groups (id),
    generation INT8 NOT NULL DEFAULT 0,
    epoch INT8 NOT NULL DEFAULT 0,
    state TEXT NOT NULL CHECK (state IN ('online', 'offline', 'syncing')),
    state_since TIMESTAMPTZ NOT NULL,
    joined_at TIMESTAMPTZ NOT NULL,
    removed_at TIMESTAMPTZ,
    schema_version INT8 NOT NULL DEFAULT 0,
    schema_changes JSONB NOT NULL DEFAULT '[]',
    database_id TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL DEFAULT '',
    synced_at TIMESTAMPTZ,
    confirmed_generation INT8 NOT NULL DEFAULT 0,
    failures INT8 NOT NULL DEFAULT 0,
    failed_generation INT8 NOT NULL DEFAULT 0,
    retry_at TIMESTAMPTZ,
    error_code TEXT NOT NULL DEFAULT '',
    error_message TEXT NOT NULL DEFAULT '',
    error_at TIMESTAMPTZ
);

CREATE INDEX IF NOT EXISTS nodes_by_group ON nodes (group_id);

CREATE INDEX IF NOT EXISTS nodes_by_epoch ON nodes (epoch);

-- Apart from nodes, so that heartbeats never conflict with syncs: only heartbeats write it. A node's last sync is the
-- later of nodes.synced_at (a sync's own transaction) and last_sync_at (a poll that confirmed the target).
CREATE TABLE IF NOT EXISTS node_presence (
    node_id UUID PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    last_seen_at TIMESTAMPTZ,
    last_sync_at TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS node_functions (
    node_id UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    version INT8 NOT NULL,
    sha256 TEXT NOT NULL,
    manifest_digest TEXT NOT NULL,
    PRIMARY KEY (node_id, name)
);

CREATE TABLE IF NOT EXISTS warnings (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    node_id UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    since TIMESTAMPTZ NOT NULL,
    cleared_at TIMESTAMPTZ
);

CREATE UNIQUE INDEX IF NOT EXISTS warnings_open ON warnings (node_id, kind) WHERE cleared_at IS NULL;

-- replaces: the credential that ends when this one is first used.
CREATE TABLE IF NOT EXISTS credentials (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    node_id UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    secret_hash TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    first_used_at TIMESTAMPTZ,
    expires_at TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ,
    replaces UUID,
    epoch INT8 NOT NULL DEFAULT 0
);

CREATE INDEX IF NOT EXISTS credentials_by_node ON credentials (node_id);

CREATE INDEX IF NOT EXISTS credentials_by_epoch ON credentials (epoch);

-- rejoin: the name of a lost node, whose identity goes to the new disk.
CREATE TABLE IF NOT EXISTS join_tokens (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    secret_hash TEXT NOT NULL,
    group_id UUID NOT NULL REFERENCES groups (id),
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    rejoin TEXT,
    attempt TEXT,
    node_id UUID,
    used_at TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS operators (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('read', 'deploy', 'admin')),
    secret_hash TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ,
    epoch INT8 NOT NULL DEFAULT 0
);

-- The object's key is sha256/id. uploading, then ready, then deleting: written before the object is.
CREATE TABLE IF NOT EXISTS artifacts (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    sha256 TEXT NOT NULL,
    size INT8 NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('uploading', 'ready', 'deleting')),
    abi TEXT NOT NULL DEFAULT '',
    memory_pages INT8 NOT NULL DEFAULT 0,
    created_at TIMESTAMPTZ NOT NULL,
    state_since TIMESTAMPTZ NOT NULL
);

CREATE UNIQUE INDEX IF NOT EXISTS artifacts_ready ON artifacts (sha256) WHERE state = 'ready';

CREATE INDEX IF NOT EXISTS artifacts_by_sha256 ON artifacts (sha256);

-- last_version outlives a deletion, so that a number is never used again.
CREATE TABLE IF NOT EXISTS functions (
    name TEXT PRIMARY KEY,
    last_version INT8 NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE IF NOT EXISTS function_versions (
    name TEXT NOT NULL REFERENCES functions (name),
    version INT8 NOT NULL,
    artifact_id UUID NOT NULL REFERENCES artifacts (id),
    sha256 TEXT NOT NULL,
    size INT8 NOT NULL,
    manifest JSONB NOT NULL,
    manifest_digest TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (name, version)
);

CREATE INDEX IF NOT EXISTS function_versions_by_artifact ON function_versions (artifact_id);

-- The newest revision of each number is what a node that lacks it gets.
CREATE TABLE IF NOT EXISTS schema_changes (
    number INT8 NOT NULL,
    revision INT8 NOT NULL,
    name TEXT NOT NULL,
    sql TEXT NOT NULL,
    checksum TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (number, revision)
);

-- number counts within the group; immutable.
CREATE TABLE IF NOT EXISTS releases (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    group_id UUID NOT NULL REFERENCES groups (id),
    number INT8 NOT NULL,
    generation INT8 NOT NULL,
    schema_floor INT8 NOT NULL,
    rollback_to INT8,
    reason TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    UNIQUE (group_id, number)
);

-- Copied in, so that a release stays readable after a version was deleted.
CREATE TABLE IF NOT EXISTS release_functions (
    release_id UUID NOT NULL REFERENCES releases (id),
    name TEXT NOT NULL,
    version INT8 NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (release_id, name)
);

CREATE INDEX IF NOT EXISTS release_functions_by_version ON release_functions (name, version);

-- The log of syncs (R 6.4). An open one is `running`; late_* is a result that came after the end.
CREATE TABLE IF NOT EXISTS syncs (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    node_id UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    release_id UUID NOT NULL,
    generation INT8 NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'succeeded', 'failed', 'expired', 'superseded')),
    step TEXT NOT NULL DEFAULT '',
    started_at TIMESTAMPTZ NOT NULL,
    lease_until TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    error_code TEXT NOT NULL DEFAULT '',
    error_message TEXT NOT NULL DEFAULT '',
    late_status TEXT,
    late_at TIMESTAMPTZ
);

CREATE UNIQUE INDEX IF NOT EXISTS syncs_open ON syncs (node_id) WHERE status = 'running';

CREATE INDEX IF NOT EXISTS syncs_by_node ON syncs (node_id, started_at);

CREATE INDEX IF NOT EXISTS syncs_by_start ON syncs (started_at, id);

CREATE INDEX IF NOT EXISTS syncs_by_lease ON syncs (lease_until) WHERE status = 'running';

-- Refused authentications, counted by address, reason and minute (R 7.4): a flood is a number, not a million rows.
CREATE TABLE IF NOT EXISTS auth_failures (
    minute TIMESTAMPTZ NOT NULL,
    address TEXT NOT NULL,
    reason TEXT NOT NULL,
    count INT8 NOT NULL,
    first_at TIMESTAMPTZ NOT NULL,
    last_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (minute, address, reason)
);

-- What operators did.
CREATE TABLE IF NOT EXISTS audit (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    at TIMESTAMPTZ NOT NULL,
    operator TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    details JSONB NOT NULL DEFAULT '{}'
);

CREATE INDEX IF NOT EXISTS audit_by_time ON audit (at, id);

-- The answer to a POST, kept for a day under the operator's idempotency key: asking again is safe.
CREATE TABLE IF NOT EXISTS idempotency (
    operator TEXT NOT NULL,
    key TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    status INT8 NOT NULL,
    response JSONB,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (operator, key)
);

-- Who runs the monitor.
CREATE TABLE IF NOT EXISTS leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);

-- Which files of this folder were applied, with their sha256.
CREATE TABLE IF NOT EXISTS migrations (
    name TEXT PRIMARY KEY,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL
);
