-- Whether a name was ever used.
-- name: taken
SELECT EXISTS (SELECT 1 FROM operators WHERE name = $1);

-- Add an operator.
-- name: add
INSERT INTO operators (id, name, role, secret_hash, created_at) VALUES ($1, $2, $3, $4, $5);

-- Give an operator another secret.
-- name: renew
UPDATE operators SET secret_hash = $2 WHERE id = $1;

-- Operators that can sign in, by name, after a name.
-- name: operators
SELECT name, role, created_at FROM operators WHERE revoked_at IS NULL AND name > $1 ORDER BY name LIMIT $2;

-- An operator that can sign in.
-- name: operator
SELECT id, role FROM operators WHERE name = $1 AND revoked_at IS NULL;

-- How many admins can sign in.
-- name: admins
SELECT count(*) FROM operators WHERE role = 'admin' AND revoked_at IS NULL;

-- Revoke an operator's token.
-- name: revoke
UPDATE operators SET revoked_at = $2 WHERE id = $1;
