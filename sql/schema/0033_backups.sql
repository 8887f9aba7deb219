-- Backups of nodes' databases, and what brings one back.

-- backup: how the databases of the group's nodes are backed up, as the API has it (interval, retention); NULL: they aren't.
ALTER TABLE groups ADD COLUMN IF NOT EXISTS backup JSONB;

-- restore_id: what the node brings back now, or is held at: it gets no plan meanwhile. NULL: it goes to its target.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS restore_id UUID;

-- One unbroken history of one database on one disk: what a node has said of it, and what control has found at the
-- store. reached: the last transaction at the store; reached_at: when the node's disk had nothing newer than that.
-- pending: bytes that wait on the node. error: why it doesn't go on. at_store: bytes. merged: the transaction up to which
-- shipments were merged; merged_at, swept_at: when control looked for some, and for what the retention doesn't need.
-- proven: the last transaction of which a restore was tried and worked. drilled_at: the last attempt; drill_error: why
-- that failed; '' if it worked. ended_at: when another history took its place.
CREATE TABLE IF NOT EXISTS backups (
    node_id UUID NOT NULL,
    lineage TEXT NOT NULL,
    begun_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    reached INT8 NOT NULL DEFAULT 0,
    reached_at TIMESTAMPTZ,
    told_at TIMESTAMPTZ NOT NULL,
    pending INT8 NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    at_store INT8 NOT NULL DEFAULT 0,
    merged INT8 NOT NULL DEFAULT 0,
    merged_at TIMESTAMPTZ,
    swept_at TIMESTAMPTZ,
    proven INT8 NOT NULL DEFAULT 0,
    proven_at TIMESTAMPTZ,
    drilled_at TIMESTAMPTZ,
    drill_error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (node_id, lineage)
);

CREATE INDEX IF NOT EXISTS backups_by_drill ON backups (drilled_at, node_id, lineage) WHERE ended_at IS NULL;

-- A node has one history that goes on at most.
CREATE UNIQUE INDEX IF NOT EXISTS backups_open ON backups (node_id) WHERE ended_at IS NULL;

-- The last transaction before a node's flip to a release: what `before:RELEASE` means for this node.
CREATE TABLE IF NOT EXISTS boundaries (
    node_id UUID NOT NULL,
    release_id UUID NOT NULL,
    lineage TEXT NOT NULL,
    transaction_id INT8 NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (node_id, release_id)
);

-- The nodes that bring something back, or are held, for counts: see nodes_by_standing.
CREATE INDEX IF NOT EXISTS nodes_held ON nodes (group_id, error_code, state, confirmed_generation, generation)
WHERE restore_id IS NOT NULL;

-- A restore of a node: to a transaction of a lineage, which is that of from_node_id, or the node's own if that is NULL.
-- before_release: the release before which that is. hold: whether the node stays there until somebody resumes it.
-- undo_id: one id for the restores of one `rollback --data`. release_number: of the database that the node has then;
-- release_id: the same release, which may be of another group; NULL if it has none, or one that isn't known here.
CREATE TABLE IF NOT EXISTS restores (
    id UUID PRIMARY KEY,
    node_id UUID NOT NULL,
    from_node_id UUID,
    lineage TEXT NOT NULL,
    transaction_id INT8 NOT NULL,
    state_at TIMESTAMPTZ NOT NULL,
    before_release UUID,
    undo_id UUID,
    hold BOOL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ordered', 'held', 'done', 'failed', 'cancelled')),
    code TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    release_number INT8,
    release_id UUID,
    kept TEXT NOT NULL DEFAULT '',
    kept_lineage TEXT NOT NULL DEFAULT '',
    kept_transaction INT8 NOT NULL DEFAULT 0,
    made_by TEXT NOT NULL,
    made_at TIMESTAMPTZ NOT NULL,
    told_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ
);

CREATE INDEX IF NOT EXISTS restores_by_node ON restores (node_id, made_at);

CREATE INDEX IF NOT EXISTS restores_ordered ON restores (lineage) WHERE state = 'ordered';

CREATE INDEX IF NOT EXISTS restores_by_undo ON restores (undo_id) WHERE undo_id IS NOT NULL;
