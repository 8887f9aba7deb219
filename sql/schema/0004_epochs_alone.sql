-- It is in `generations` now.
ALTER TABLE epochs DROP COLUMN IF EXISTS generation;
