-- When a plan first contained a revision: from then on a node may have applied it, so it can't be withdrawn any more.
ALTER TABLE schema_changes ADD COLUMN IF NOT EXISTS planned_at TIMESTAMPTZ;

-- Plans of before: no plan went above the highest floor.
UPDATE schema_changes SET planned_at = created_at
WHERE planned_at IS NULL AND number <= (SELECT coalesce(max(schema_floor), 0) FROM releases);

-- withdrawn: this revision does nothing, in the place of one that no node can have.
ALTER TABLE schema_changes ADD COLUMN IF NOT EXISTS withdrawn BOOL NOT NULL DEFAULT false;
