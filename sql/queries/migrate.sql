-- Which server this is.
-- name: server
SELECT version();

-- Which files were applied.
-- name: applied
SELECT name, checksum FROM migrations ORDER BY name;

-- Record a file whose statements were all run.
-- name: record
INSERT INTO migrations (name, checksum, applied_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING;

-- The group that every node is in unless told otherwise.
-- name: default_group
INSERT INTO groups (name, created_at) VALUES ('default', $1) ON CONFLICT (name) DO NOTHING;

-- How many admins can still sign in.
-- name: admins
SELECT count(*) FROM operators WHERE role = 'admin' AND revoked_at IS NULL;

-- The id of an operator.
-- name: operator_id
SELECT id FROM operators WHERE name = $1;

-- An admin with a new token; one that is there gets the role and the token.
-- name: put_admin
INSERT INTO operators (id, name, role, secret_hash, created_at) VALUES ($1, $2, 'admin', $3, $4)
ON CONFLICT (id) DO UPDATE SET role = 'admin', secret_hash = excluded.secret_hash, revoked_at = NULL;

-- Record that an admin was made by who has the database.
-- name: audit_admin
INSERT INTO audit (id, at, operator, action, subject, details)
VALUES ($1, $2, 'migrate', 'operator.create', $3::text, '{"role": "admin"}');
