-- How many nodes stand how is counted in this index alone, whatever else a node's row has.
CREATE INDEX IF NOT EXISTS nodes_by_standing ON nodes (group_id, error_code, state, confirmed_generation, generation)
WHERE removed_at IS NULL;
