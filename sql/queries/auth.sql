-- The operator that a token names.
-- name: operator
SELECT name, role, secret_hash, revoked_at FROM operators WHERE id = $1;

-- Add counts of refused authentications: minutes, addresses, reasons, counts, first and last times.
-- name: record_failures
INSERT INTO auth_failures (minute, address, reason, count, first_at, last_at)
SELECT minute, address, reason, count, first_at, last_at
FROM unnest($1::text[]::timestamptz[], $2::text[], $3::text[], $4::text[]::int8[], $5::text[]::timestamptz[],
    $6::text[]::timestamptz[]) AS f (minute, address, reason, count, first_at, last_at)
ON CONFLICT (minute, address, reason) DO UPDATE SET count = auth_failures.count + excluded.count,
    last_at = greatest(auth_failures.last_at, excluded.last_at);
