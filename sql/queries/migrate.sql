-- The server's name and version.
-- name: server
SELECT version();

-- The files that were applied.
-- name: applied
SELECT name, checksum FROM migrations ORDER BY name;

-- Record a file whose statements were all run.
-- name: record
INSERT INTO migrations (name, checksum, applied_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING;

-- Make the group that a node joins if its token names no other.
-- name: default_group
INSERT INTO groups (name, created_at) VALUES ('default', $1) ON CONFLICT (name) DO NOTHING;

-- How many admins of all groups can sign in, and don't end.
-- name: admins
SELECT count(*) FROM operators WHERE role = 'admin' AND revoked_at IS NULL AND expires_at IS NULL;

-- An operator that wasn't revoked.
-- name: operator
SELECT id, role, grants, expires_at FROM operators WHERE name = $1 AND revoked_at IS NULL;

-- Make an admin with a new token; an operator that exists gets the role and the token.
-- name: put_admin
INSERT INTO operators (id, name, role, secret_hash, created_at) VALUES ($1, $2, 'admin', $3, $4)
ON CONFLICT (id) DO UPDATE SET role = 'admin', grants = NULL, expires_at = NULL, secret_hash = excluded.secret_hash,
    old_secret_hash = '', rotated_at = excluded.created_at, old_ends_at = excluded.created_at;
