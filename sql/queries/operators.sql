-- Whether a name is that of an operator who wasn't revoked.
-- name: taken
SELECT EXISTS (SELECT 1 FROM operators WHERE name = $1 AND revoked_at IS NULL);

-- Give a revoked operator's name free: its id is put behind it.
-- name: free_name
UPDATE operators SET name = name || '~' || id::text WHERE name = $1 AND revoked_at IS NOT NULL RETURNING id::text AS id;

-- Forget the answers that were kept for whoever had a name.
-- name: forget_answers
DELETE FROM idempotency WHERE operator = $1;

-- Add an operator.
-- name: add
INSERT INTO operators (id, name, role, grants, expires_at, secret_hash, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- Give an operator another secret.
-- name: renew
UPDATE operators SET secret_hash = $2 WHERE id = $1;

-- Give an operator another secret; the previous one is valid until $4.
-- name: rotate
UPDATE operators SET old_secret_hash = secret_hash, secret_hash = $2, rotated_at = $3, old_ends_at = $4 WHERE id = $1;

-- End the sessions that began with a token before the one that is exchanged at $2.
-- name: end_older_sessions
UPDATE sessions SET ended_at = $2
WHERE operator_id = $1 AND ended_at IS NULL
    AND made_at < (SELECT o.rotated_at FROM operators AS o WHERE o.id = $1 AND o.rotated_at < $2);

-- End the codes for signing in that nobody has used yet.
-- name: end_codes
DELETE FROM sign_in_codes WHERE operator_id = $1 AND used_at IS NULL;

-- Record when operators last asked for something: ids and times.
-- name: used
INSERT INTO operator_uses (operator_id, last_used_at)
SELECT id, at FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) AS u (id, at)
ON CONFLICT (operator_id) DO UPDATE SET last_used_at = greatest(operator_uses.last_used_at, excluded.last_used_at);

-- Operators that weren't revoked, by name, after a name; with $2, those that have grants, all for these groups.
-- name: operators
SELECT o.id, o.name, o.role, o.grants, o.expires_at, o.created_at, o.issuer, o.subject, o.shown_name,
    o.old_ends_at, u.last_used_at
FROM operators AS o LEFT JOIN operator_uses AS u ON u.operator_id = o.id
WHERE o.revoked_at IS NULL AND o.name > $1 AND ($2::text[] IS NULL OR (
    o.grants IS NOT NULL AND jsonb_array_length(o.grants) > 0 AND NOT EXISTS (
        SELECT 1 FROM jsonb_array_elements(o.grants) AS g (item)
        WHERE g.item ->> 'group' IS NULL OR NOT g.item ->> 'group' = ANY($2::text[])
    )
))
ORDER BY o.name LIMIT $3;

-- An operator that wasn't revoked.
-- name: operator
SELECT o.id, o.name, o.role, o.grants, o.expires_at, o.created_at, o.issuer, o.subject, o.shown_name, o.old_ends_at,
    u.last_used_at
FROM operators AS o LEFT JOIN operator_uses AS u ON u.operator_id = o.id
WHERE o.name = $1 AND o.revoked_at IS NULL;

-- How many admins of all groups can sign in, and don't end.
-- name: admins
SELECT count(*) FROM operators WHERE role = 'admin' AND revoked_at IS NULL AND expires_at IS NULL;

-- Change what an operator may, and when it ends.
-- name: change
UPDATE operators SET role = $2, grants = $3, expires_at = $4 WHERE id = $1;

-- Revoke an operator's token.
-- name: revoke
UPDATE operators SET revoked_at = $2 WHERE id = $1;

-- The names of the groups that exist, of these.
-- name: groups
SELECT name FROM groups WHERE name = ANY($1::text[]);
