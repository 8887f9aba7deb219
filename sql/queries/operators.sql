-- Whether a name was ever used.
-- name: taken
SELECT EXISTS (SELECT 1 FROM operators WHERE name = $1);

-- Add an operator.
-- name: add
INSERT INTO operators (id, name, role, grants, expires_at, secret_hash, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- Give an operator another secret.
-- name: renew
UPDATE operators SET secret_hash = $2 WHERE id = $1;

-- Operators that weren't revoked, by name, after a name; with $2, those whose grants are all for these groups.
-- name: operators
SELECT name, role, grants, expires_at, created_at, issuer, subject, shown_name FROM operators
WHERE revoked_at IS NULL AND name > $1 AND ($2::text[] IS NULL OR (
    grants IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM jsonb_array_elements(grants) AS g (item)
        WHERE g.item ->> 'group' IS NULL OR NOT g.item ->> 'group' = ANY($2::text[])
    )
))
ORDER BY name LIMIT $3;

-- An operator that wasn't revoked.
-- name: operator
SELECT id, name, role, grants, expires_at, created_at, issuer, subject, shown_name FROM operators
WHERE name = $1 AND revoked_at IS NULL;

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
