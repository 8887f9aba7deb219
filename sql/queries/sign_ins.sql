-- Codes for signing in at the console, and what `skerry login` waits for.

-- Add a code.
-- name: add_code
INSERT INTO sign_in_codes (code_hash, operator_id, made_at, signed_in_at, stays) VALUES ($1, $2, $3, $4, $5);

-- Use a code that was made since a time ($3) and wasn't used; returns no row if there is none.
-- name: use_code
UPDATE sign_in_codes SET used_at = $2 WHERE code_hash = $1 AND used_at IS NULL AND made_at > $3
RETURNING operator_id::text AS operator_id, signed_in_at, stays;

-- The addresses of the newest sessions that were begun since a time.
-- name: signed_in_from
SELECT DISTINCT n.address FROM (
    SELECT a.address FROM audit AS a WHERE a.action = 'session.begin' AND a.at >= $1 ORDER BY a.at DESC, a.id DESC LIMIT $2
) AS n;

-- Begin a login.
-- name: begin_login
INSERT INTO logins (id, secret_hash, code, machine, address, made_at) VALUES ($1, $2, $3, $4, $5, $6);

-- Logins by id.
-- name: logins
SELECT id::text AS id, secret_hash, made_at, answered_at, operator_id::text AS operator_id, given_at
FROM logins WHERE id = ANY($1::text[]::uuid[]);

-- The logins with a code that were begun since a time and weren't answered.
-- name: waiting
SELECT id::text AS id, machine, address, made_at FROM logins
WHERE code = $1 AND made_at > $2 AND answered_at IS NULL ORDER BY made_at DESC, id LIMIT 2;

-- Answer a login that wasn't answered; without an operator it is refused. Answers no row where it was answered.
-- name: answer
UPDATE logins SET answered_at = $2, operator_id = $3, signed_in_by = $4, signed_in_at = $5, stays = $6
WHERE id = $1 AND answered_at IS NULL RETURNING id;

-- Take what a login that was allowed gives, once; returns no row if it was taken.
-- name: take
UPDATE logins SET given_at = $2 WHERE id = $1 AND given_at IS NULL AND operator_id IS NOT NULL
RETURNING operator_id::text AS operator_id, signed_in_by, signed_in_at, stays;
