-- Take the next epoch: what is written with it is announced to every replica.
-- name: next_epoch
UPDATE epochs SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch;

-- The first use of a credential.
-- name: first_use
UPDATE credentials SET first_used_at = $2 WHERE id = $1 AND first_used_at IS NULL RETURNING id;

-- Revoke a credential.
-- name: revoke
UPDATE credentials SET revoked_at = $2, epoch = $3 WHERE id = $1 AND revoked_at IS NULL;

-- Add counts of refused authentications: minutes, addresses, reasons, counts, first and last times.
-- name: record_failures
INSERT INTO auth_failures (minute, address, reason, count, first_at, last_at)
SELECT minute, address, reason, count, first_at, last_at
FROM unnest($1::text[]::timestamptz[], $2::text[], $3::text[], $4::text[]::int8[], $5::text[]::timestamptz[],
    $6::text[]::timestamptz[]) AS f (minute, address, reason, count, first_at, last_at)
ON CONFLICT (minute, address, reason) DO UPDATE SET count = auth_failures.count + excluded.count,
    last_at = greatest(auth_failures.last_at, excluded.last_at);
