-- Access lists: who may come in, kept in the bucket beside the metadata.

-- Record a change, in the transaction that makes it.
-- name: record
INSERT INTO access_changes (id, at, kind, subject, details) VALUES ($1, $2, $3, $4, $5);

-- Record the same kind of change of several subjects.
-- name: record_all
INSERT INTO access_changes (id, at, kind, subject)
SELECT u.id::uuid, $3::timestamptz, $4::text, u.subject::uuid FROM unnest($1::text[], $2::text[]) AS u (id, subject);

-- Changes that no list has yet, the oldest first; of one moment, a node before its credential.
-- name: waiting
SELECT id::text AS id, at, kind, subject::text AS subject, details FROM access_changes
ORDER BY at, kind = 'credential-made', id LIMIT $1;

-- How many changes no list has yet, and since when.
-- name: count_waiting
SELECT count(*) AS changes, min(at) AS since FROM access_changes;

-- Whose lists these are, and the key of their codes.
-- name: key
SELECT owner::text AS owner, access_key::text AS key FROM artifact_store WHERE id = 1;

-- Note a list.
-- name: note
INSERT INTO access_lists (name, noted_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING name;

-- Those of these lists that are noted.
-- name: noted
SELECT name FROM access_lists WHERE name = ANY($1::text[]);

-- Forget changes that a list has.
-- name: forget
DELETE FROM access_changes WHERE id = ANY($1::text[]::uuid[]);

-- Forget changes that were waiting when the backup was made, and are in a list: times, kinds and subjects of its changes.
-- name: forget_listed
DELETE FROM access_changes WHERE id IN (
    SELECT a.id FROM access_changes AS a
    JOIN unnest($1::text[], $2::text[], $3::text[]) AS u (at, kind, subject)
        ON a.at = u.at::timestamptz AND a.kind = u.kind AND a.subject = u.subject::uuid
);

-- Make a node known again that joined after the backup; one whose name another node has stays unknown.
-- name: add_node
INSERT INTO nodes (id, name, labels, protocol, group_id, state, state_since, joined_at)
SELECT $1::uuid, $2::text, $3::jsonb, $4::int8, g.id, 'offline', $6::timestamptz, $6::timestamptz
FROM groups AS g
WHERE g.id = coalesce(
        (SELECT h.id FROM groups AS h WHERE h.id = $5::uuid), (SELECT d.id FROM groups AS d WHERE d.name = 'default')
    )
    AND NOT EXISTS (SELECT 1 FROM nodes AS n WHERE n.id = $1::uuid OR n.name = $2::text)
RETURNING id::text AS id;

-- Give a node the name that it got after the backup; where another node has that, it keeps its own.
-- name: rename_node
UPDATE nodes SET name = $2::text
WHERE id = $1 AND removed_at IS NULL AND name <> $2::text
    AND NOT EXISTS (SELECT 1 FROM nodes AS n WHERE n.name = $2::text)
RETURNING id::text AS id;

-- Add the presence of a node that is known again.
-- name: add_presence
INSERT INTO node_presence (node_id, last_seen_at, confirmed_at, offline) VALUES ($1, $2, $2, true)
ON CONFLICT (node_id) DO NOTHING;

-- Make a credential known again that was made after the backup.
-- name: add_credential
INSERT INTO credentials (id, node_id, secret_hash, created_at, replaces)
SELECT $1::uuid, n.id, $3::text, $4::timestamptz, $5::uuid FROM nodes AS n
WHERE n.id = $2::uuid AND n.removed_at IS NULL
ON CONFLICT (id) DO NOTHING
RETURNING id::text AS id;

-- Revoke the credentials of a node that were never used, except one.
-- name: revoke_unused
UPDATE credentials SET revoked_at = $3
WHERE node_id = $1 AND id <> $2 AND id <> $4 AND revoked_at IS NULL AND first_used_at IS NULL
RETURNING id::text AS id;

-- A credential was used: somebody got its successor with it.
-- name: use
UPDATE credentials SET first_used_at = $2 WHERE id = $1 AND first_used_at IS NULL RETURNING id::text AS id;

-- Revoke the credential that another one replaced.
-- name: revoke_replaced
UPDATE credentials SET revoked_at = $2
WHERE id = (SELECT c.replaces FROM credentials AS c WHERE c.id = $1) AND revoked_at IS NULL
RETURNING id::text AS id;

-- Revoke the credentials of a node that were made before a time.
-- name: revoke_before
UPDATE credentials SET revoked_at = $2 WHERE node_id = $1 AND created_at < $2 AND revoked_at IS NULL
RETURNING id::text AS id;

-- Mark a node without a valid credential as revoked.
-- name: set_revoked
UPDATE nodes AS n SET state = 'revoked', state_since = $2
WHERE n.id = $1 AND n.removed_at IS NULL AND n.state <> 'revoked'
    AND NOT EXISTS (SELECT 1 FROM credentials AS c WHERE c.node_id = n.id AND c.revoked_at IS NULL)
RETURNING n.id::text AS id;

-- A node that was revoked has got a credential since.
-- name: end_revoked
UPDATE nodes SET state = 'online', state_since = $2 WHERE id = $1 AND state = 'revoked' RETURNING id::text AS id;

-- Whether a node is there and wasn't removed.
-- name: has_node
SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1 AND removed_at IS NULL);

-- Revoke an operator.
-- name: revoke_operator
UPDATE operators SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING id::text AS id;

-- Add an operator of a provider that is revoked: else it would be made anew when it signs in.
-- name: add_revoked
INSERT INTO operators (id, name, role, grants, secret_hash, created_at, revoked_at, issuer, subject)
SELECT $1::uuid, $2::text, 'read', '[]'::jsonb, '', $3::timestamptz, $3::timestamptz, $4::text, $5::text
WHERE NOT EXISTS (
    SELECT 1 FROM operators AS o
    WHERE o.id = $1::uuid OR o.name = $2::text OR (o.issuer = $4::text AND o.subject = $5::text)
)
RETURNING id::text AS id;

-- Give an operator the rights and the end that it got after the backup.
-- name: change_operator
UPDATE operators SET role = $2, grants = $3, expires_at = $4 WHERE id = $1 RETURNING id::text AS id;

-- Make an operator known again that was made after the backup; one whose name another has stays unknown.
-- name: add_operator
INSERT INTO operators (id, name, role, grants, expires_at, secret_hash, created_at)
SELECT $1::uuid, $2::text, $3::text, $4::jsonb, $5::timestamptz, $6::text, $7::timestamptz
WHERE NOT EXISTS (SELECT 1 FROM operators AS o WHERE o.id = $1::uuid OR o.name = $2::text)
RETURNING id::text AS id;

-- Give an operator the token that it got after the backup at $3, unless that was exchanged since.
-- name: renew_operator
UPDATE operators SET secret_hash = $2
WHERE id = $1 AND secret_hash <> $2 AND (rotated_at IS NULL OR rotated_at <= $3) RETURNING id::text AS id;

-- Exchange an operator's token as it was exchanged after the backup; the previous one is valid until $4.
-- name: rotate_operator
UPDATE operators SET old_secret_hash = secret_hash, secret_hash = $2, rotated_at = $3, old_ends_at = $4
WHERE id = $1 AND secret_hash <> $2 AND (rotated_at IS NULL OR rotated_at < $3) RETURNING id::text AS id;

-- End a join token.
-- name: end_join_token
UPDATE join_tokens SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING id::text AS id;

-- End a session; returns its operator.
-- name: end_session
UPDATE sessions SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL RETURNING operator_id::text AS operator_id;
