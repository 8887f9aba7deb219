-- rejoin_node: the node that a token with `rejoin` is for: a name may be another node's by now. revoked_at: when the
-- token ended before its time, with its node, with the operator who made it, or alone. A used one ends too: its attempt
-- gets no further credential.
ALTER TABLE join_tokens ADD COLUMN IF NOT EXISTS rejoin_node UUID;

ALTER TABLE join_tokens ADD COLUMN IF NOT EXISTS revoked_at TIMESTAMPTZ;

CREATE INDEX IF NOT EXISTS join_tokens_by_rejoin_node ON join_tokens (rejoin_node) WHERE rejoin_node IS NOT NULL;

CREATE INDEX IF NOT EXISTS join_tokens_by_node ON join_tokens (node_id) WHERE node_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS join_tokens_by_time ON join_tokens (created_at, id);

-- A token with `rejoin` that stays without a node is refused: since it was made, its node has joined again, or was
-- removed or revoked.
UPDATE join_tokens AS t SET rejoin_node = n.id
FROM nodes AS n
WHERE n.name = t.rejoin AND n.removed_at IS NULL AND n.joined_at <= t.created_at AND t.attempt IS NULL
    AND t.rejoin_node IS NULL
    AND NOT EXISTS (SELECT 1 FROM credentials AS c WHERE c.node_id = n.id AND c.revoked_at >= t.created_at);

UPDATE join_tokens AS t SET revoked_at = o.revoked_at
FROM operators AS o
WHERE o.name = t.created_by AND o.revoked_at IS NOT NULL AND t.revoked_at IS NULL;

UPDATE join_tokens AS t SET revoked_at = t.used_at
WHERE t.node_id IS NOT NULL AND t.revoked_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM credentials AS c WHERE c.node_id = t.node_id AND c.revoked_at IS NULL);
