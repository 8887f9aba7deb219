-- When a group was deleted: it has no nodes and no target, its name is free, and it is in no list. Its row stays, since
-- removed nodes, releases and syncs refer to it.
ALTER TABLE groups ADD COLUMN IF NOT EXISTS deleted_at TIMESTAMPTZ;
