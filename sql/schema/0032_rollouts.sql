-- Releases that are rehearsed on nodes' own data, and go out in steps.

-- policy: how the group's releases go out, as the API has it; NULL: to all nodes at once.
ALTER TABLE groups ADD COLUMN IF NOT EXISTS policy JSONB;

-- release_id: the node's target in place of its group's, while generation is above the group's: a rollout has started it.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS release_id UUID;

-- moved_generation: the generation of the node's last move; NULL where generation is that.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS moved_generation INT8;

CREATE INDEX IF NOT EXISTS nodes_by_own_release ON nodes (release_id, generation) WHERE release_id IS NOT NULL;

-- In the row of a replica's mark: whether its version knows that nodes may have a release of their own.
ALTER TABLE leases ADD COLUMN IF NOT EXISTS own_targets BOOL NOT NULL DEFAULT false;

-- The rollout of a release. step: 0 is the rehearsal. waits_for: why it doesn't go on now; reason: that in a sentence.
-- attempt: 1, and one more with each retry. rehearsal_only: it pauses after its rehearsal. forgiven: failed nodes
-- that earlier steps went on with, or that somebody has accepted. measured_from: calls before it don't count for the step's gates. told_at: when somebody
-- was last told that it waits.
CREATE TABLE IF NOT EXISTS rollouts (
    release_id UUID PRIMARY KEY REFERENCES releases (id),
    group_id UUID NOT NULL REFERENCES groups (id),
    policy JSONB NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('running', 'paused', 'done', 'aborted', 'superseded', 'rolled_back')),
    step INT8 NOT NULL,
    step_since TIMESTAMPTZ NOT NULL,
    waits_for TEXT NOT NULL DEFAULT '',
    waits_since TIMESTAMPTZ NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    attempt INT8 NOT NULL DEFAULT 1,
    rehearsal_only BOOL NOT NULL DEFAULT false,
    forgiven INT8 NOT NULL DEFAULT 0,
    measured_from TIMESTAMPTZ NOT NULL,
    told_at TIMESTAMPTZ,
    made_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ
);

-- A group has one at most that hasn't ended.
CREATE UNIQUE INDEX IF NOT EXISTS rollouts_open ON rollouts (group_id) WHERE state IN ('running', 'paused');

CREATE INDEX IF NOT EXISTS rollouts_by_time ON rollouts (made_at, release_id);

-- The nodes that a rollout has started, also those that have left since. before: calls of the hour before the node's flip,
-- in msgpack (wire.HourBefore).
CREATE TABLE IF NOT EXISTS rollout_nodes (
    release_id UUID NOT NULL REFERENCES rollouts (release_id),
    node_id UUID NOT NULL,
    step INT8 NOT NULL,
    generation INT8 NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    before BYTEA,
    PRIMARY KEY (release_id, node_id)
);

-- What a node runs, by the generation at which it was confirmed.
CREATE INDEX IF NOT EXISTS rollout_nodes_by_node ON rollout_nodes (node_id, generation);

-- What nodes found when they tried a release on a copy of their own data.
CREATE TABLE IF NOT EXISTS rehearsals (
    release_id UUID NOT NULL REFERENCES rollouts (release_id),
    node_id UUID NOT NULL,
    attempt INT8 NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('passed', 'failed', 'unknown')),
    code TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    report JSONB NOT NULL DEFAULT '{}',
    told_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (release_id, node_id, attempt)
);

-- What a step's gates last said, with the values that they saw.
CREATE TABLE IF NOT EXISTS rollout_gates (
    release_id UUID NOT NULL REFERENCES rollouts (release_id),
    step INT8 NOT NULL,
    gate INT8 NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('passed', 'failed', 'unknown')),
    measured FLOAT8,
    allowed FLOAT8,
    before FLOAT8,
    calls INT8 NOT NULL DEFAULT 0,
    why TEXT NOT NULL DEFAULT '',
    measured_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (release_id, step, gate)
);
