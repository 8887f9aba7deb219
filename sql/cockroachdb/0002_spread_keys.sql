-- Keys that begin with a time grow at their end, where one range would take all writes: they are spread by a hash.
CREATE INDEX IF NOT EXISTS syncs_by_start_spread ON syncs (started_at, id) USING HASH;

DROP INDEX IF EXISTS syncs_by_start;

CREATE INDEX IF NOT EXISTS syncs_by_lease_spread ON syncs (lease_until) USING HASH WHERE status = 'running';

DROP INDEX IF EXISTS syncs_by_lease;

CREATE INDEX IF NOT EXISTS audit_by_time_spread ON audit (at, id) USING HASH;

DROP INDEX IF EXISTS audit_by_time;

ALTER TABLE auth_failures ALTER PRIMARY KEY USING COLUMNS (minute, address, reason) USING HASH;
