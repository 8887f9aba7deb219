-- Sessions: who has signed in, in a browser or by `skerry login`.

-- Sessions by id.
-- name: sessions
SELECT id::text AS id, secret_hash, operator_id::text AS operator_id, used_in, signed_in_by, stays, made_at,
    last_used_at, ended_at
FROM sessions WHERE id = ANY($1::text[]::uuid[]);

-- Add a session.
-- name: begin
INSERT INTO sessions (id, secret_hash, operator_id, used_in, signed_in_by, stays, made_at, last_used_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- End a session; returns no row if it had ended.
-- name: end
UPDATE sessions SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL RETURNING id;

-- Whether a session wasn't ended.
-- name: is_open
SELECT EXISTS (SELECT 1 FROM sessions WHERE id = $1 AND ended_at IS NULL);

-- Record when sessions were last used: ids and times.
-- name: used
UPDATE sessions AS s SET last_used_at = greatest(s.last_used_at, u.at)
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) AS u (id, at)
WHERE s.id = u.id;
