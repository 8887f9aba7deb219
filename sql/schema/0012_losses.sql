-- What nodes can lose by a revision: NULL where it was registered by a version that didn't look for that.
ALTER TABLE schema_changes ADD COLUMN IF NOT EXISTS losses JSONB;

-- How many rows the tables of nodes have, as they tell it now and then. Apart from nodes, as node_presence is.
CREATE TABLE IF NOT EXISTS node_row_counts (
    node_id UUID PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    counts JSONB NOT NULL,
    told_at TIMESTAMPTZ NOT NULL
);
