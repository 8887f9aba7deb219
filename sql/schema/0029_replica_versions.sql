-- In the row of a replica's mark: the version of control that writes it, '' where that is too old to tell it.
ALTER TABLE leases ADD COLUMN IF NOT EXISTS version TEXT NOT NULL DEFAULT '';
