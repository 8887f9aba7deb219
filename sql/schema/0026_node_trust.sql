-- Which CAs a node trusts control by, as it told last: a digest, `system`, or '' of a version that doesn't say. When the
-- last of them ends: unix seconds, 0 where that isn't known.
ALTER TABLE node_numbers ADD COLUMN IF NOT EXISTS trust TEXT NOT NULL DEFAULT '';

ALTER TABLE node_numbers ADD COLUMN IF NOT EXISTS trust_ends INT8 NOT NULL DEFAULT 0;
