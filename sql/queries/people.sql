-- People whom an OpenID provider knows: operators without a token.

-- The operator that a provider calls so.
-- name: found
SELECT id, name, role, grants, expires_at, revoked_at, shown_name FROM operators WHERE issuer = $1 AND subject = $2;

-- Add one.
-- name: add
INSERT INTO operators (id, name, role, grants, expires_at, secret_hash, created_at, issuer, subject, shown_name)
VALUES ($1, $2, $3, $4, $5, '', $6, $7, $8, $9);

-- What one may now, until when, and how it is called now.
-- name: change
UPDATE operators SET role = $2, grants = $3, expires_at = $4, shown_name = $5 WHERE id = $1;
