-- Add a join token.
-- name: add
INSERT INTO join_tokens (id, secret_hash, group_id, created_by, created_at, expires_at, rejoin, rejoin_node)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- Give a join token that wasn't used or revoked another secret.
-- name: renew
UPDATE join_tokens SET secret_hash = $2 WHERE id = $1 AND attempt IS NULL AND revoked_at IS NULL RETURNING id;

-- A join token.
-- name: token
SELECT secret_hash, group_id, expires_at, attempt, node_id, used_at, rejoin, rejoin_node, revoked_at
FROM join_tokens WHERE id = $1;

-- Mark a join token as used by an attempt, for a node.
-- name: use
UPDATE join_tokens SET attempt = $2, node_id = $3, used_at = $4 WHERE id = $1 AND attempt IS NULL;

-- Join tokens, newest first, before a time and id; of some groups ($3), and in a state ($4, at the time $5), if given.
-- name: listed
SELECT t.id, g.name AS group_name, t.rejoin, t.rejoin_node, t.created_by, t.created_at, t.expires_at, t.used_at,
    t.revoked_at, n.name AS node
FROM join_tokens t JOIN groups g ON g.id = t.group_id LEFT JOIN nodes n ON n.id = t.node_id
WHERE ($1::timestamptz IS NULL OR (t.created_at, t.id) < ($1, $2::uuid))
    AND ($3::text[] IS NULL OR g.name = ANY($3::text[]))
    AND ($4::text IS NULL OR $4::text = CASE WHEN t.used_at IS NOT NULL THEN 'used'
        WHEN t.revoked_at IS NOT NULL OR (t.rejoin IS NOT NULL AND t.rejoin_node IS NULL) THEN 'revoked'
        WHEN t.expires_at <= $5::timestamptz THEN 'expired' ELSE 'open' END)
ORDER BY t.created_at DESC, t.id DESC LIMIT $6;

-- The group of a join token, when it was used, and the node that joined with it.
-- name: user
SELECT g.name AS group_name, t.used_at, n.name AS node
FROM join_tokens t JOIN groups g ON g.id = t.group_id LEFT JOIN nodes n ON n.id = t.node_id WHERE t.id = $1;

-- Revoke a join token.
-- name: revoke
UPDATE join_tokens SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL;

-- Revoke the join tokens that a node has joined with or may join with again, except one; returns them.
-- name: revoke_for_node
UPDATE join_tokens SET revoked_at = $2
WHERE (node_id = $1 OR rejoin_node = $1) AND revoked_at IS NULL AND ($3::uuid IS NULL OR id <> $3)
RETURNING id::text AS id;

-- Revoke the join tokens that an operator has made; returns them.
-- name: revoke_of_operator
UPDATE join_tokens SET revoked_at = $2 WHERE created_by = $1 AND revoked_at IS NULL RETURNING id::text AS id;

-- Join tokens by id.
-- name: stored
SELECT id::text AS id, secret_hash, expires_at, revoked_at FROM join_tokens WHERE id = ANY($1::text[]::uuid[]);
