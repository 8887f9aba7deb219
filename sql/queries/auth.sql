-- Record the first use of a valid credential.
-- name: first_use
UPDATE credentials SET first_used_at = $2 WHERE id = $1 AND first_used_at IS NULL AND revoked_at IS NULL RETURNING id;

-- Revoke a credential.
-- name: revoke
UPDATE credentials SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING id::text AS id;

-- Begin a replica's batch of counts; returns no row if this batch was written before.
-- name: begin_batch
INSERT INTO auth_failure_batches (replica, batch, written_at) VALUES ($1, $2, $3)
ON CONFLICT (replica) DO UPDATE SET batch = excluded.batch, written_at = excluded.written_at
WHERE auth_failure_batches.batch <> excluded.batch
RETURNING batch;

-- Add counts of refused authentications: minutes, addresses, reasons, counts, first and last times.
-- name: record_failures
INSERT INTO auth_failures (minute, address, reason, count, first_at, last_at)
SELECT minute, address, reason, count, first_at, last_at
FROM unnest($1::text[]::timestamptz[], $2::text[], $3::text[], $4::text[]::int8[], $5::text[]::timestamptz[],
    $6::text[]::timestamptz[]) AS f (minute, address, reason, count, first_at, last_at)
ON CONFLICT (minute, address, reason) DO UPDATE SET count = auth_failures.count + excluded.count,
    last_at = greatest(auth_failures.last_at, excluded.last_at);

-- What an operator that wasn't revoked may, and until when.
-- name: operator_rights
SELECT role, grants, expires_at, rotated_at FROM operators WHERE id = $1 AND revoked_at IS NULL;

-- Whether a node's credential wasn't revoked.
-- name: credential_is_valid
SELECT EXISTS (SELECT 1 FROM credentials WHERE id = $1 AND revoked_at IS NULL);
