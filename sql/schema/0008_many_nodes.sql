-- What the monitor asks every other second reads the nodes that it concerns alone: by index, whatever the fleet's size.

-- confirmed_at: when a node was last confirmed at its target, or when it joined; it is overdue from that time.
ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS confirmed_at TIMESTAMPTZ;

-- offline, overdue: what the monitor has made of the times.
ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS offline BOOL NOT NULL DEFAULT false;

ALTER TABLE node_presence ADD COLUMN IF NOT EXISTS overdue BOOL NOT NULL DEFAULT false;

UPDATE node_presence AS p
SET confirmed_at = GREATEST(p.last_sync_at, n.synced_at, n.joined_at), last_seen_at = COALESCE(p.last_seen_at, n.joined_at)
FROM nodes AS n WHERE n.id = p.node_id AND p.confirmed_at IS NULL;

UPDATE node_presence SET overdue = true
WHERE node_id IN (SELECT w.node_id FROM warnings AS w WHERE w.kind = 'overdue' AND w.cleared_at IS NULL);

UPDATE node_presence SET offline = true
WHERE node_id IN (SELECT n.id FROM nodes AS n WHERE n.state = 'offline');

CREATE INDEX IF NOT EXISTS node_presence_by_seen ON node_presence (offline, last_seen_at);

CREATE INDEX IF NOT EXISTS node_presence_by_confirmed ON node_presence (overdue, confirmed_at);

-- For times that are ahead, because a clock was wrong.
CREATE INDEX IF NOT EXISTS nodes_by_joined ON nodes (joined_at);

CREATE INDEX IF NOT EXISTS nodes_by_synced ON nodes (synced_at);

-- Which capabilities there are in a group, and who has them.
CREATE INDEX IF NOT EXISTS nodes_by_capabilities ON nodes (group_id, capabilities_digest, name)
WHERE removed_at IS NULL;

-- Credentials that ended are kept for a time.
CREATE INDEX IF NOT EXISTS credentials_by_end ON credentials (revoked_at) WHERE revoked_at IS NOT NULL;
