-- Which statements of a revision hold writers up on large tables: NULL where it was registered by a version that didn't
-- look for that.
ALTER TABLE schema_changes ADD COLUMN IF NOT EXISTS stalls JSONB;

-- About how many rows the tables have that have more than are counted.
ALTER TABLE node_row_counts ADD COLUMN IF NOT EXISTS estimates JSONB NOT NULL DEFAULT '{}';
