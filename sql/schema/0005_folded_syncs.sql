-- Attempts that have no line of their own in the log of syncs: of a line, those before it that it stands for too.
ALTER TABLE syncs ADD COLUMN IF NOT EXISTS folded INT8 NOT NULL DEFAULT 0;

-- Of a node, all of them so far.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS syncs_folded INT8 NOT NULL DEFAULT 0;
