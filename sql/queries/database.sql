-- Prove that the database takes writes, by a row of leases that only this replica writes and nobody reads.
-- name: prove_writes
INSERT INTO leases (name, holder, expires_at) VALUES ($1, $1, $2)
ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at;

-- The database's time.
-- name: time
SELECT clock_timestamp();

-- Plan each statement with its values: CockroachDB's plans without them don't push LIMIT down to the tables.
-- name: plan_with_values
SET plan_cache_mode = force_custom_plan;

-- Remove the time limit of this connection's statements: one may build an index.
-- name: no_time_limit
SET statement_timeout = 0;

-- Restore the connection's usual time limit.
-- name: usual_time_limit
RESET statement_timeout;
