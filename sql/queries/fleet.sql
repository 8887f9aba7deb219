-- What a replica caches: targets, credentials and operators, and the epoch that announces their changes.

-- The number of the last announcement, the replica's mark (0 if there is none), and the database's time, with which
-- a replica compares its own.
-- name: epoch
SELECT epoch, coalesce((SELECT l.holder::int8 FROM leases l WHERE l.name = $1), 0) AS mark,
    clock_timestamp() FROM epochs WHERE id = 1;

-- Write a replica's mark, and its version ($5), which knows nodes' own releases, in a row of leases that nobody else writes; returns no row if the
-- mark is lower than the one that was committed ($4), or gone: what shows that the metadata were restored must stay until
-- it is read.
-- name: write_mark
INSERT INTO leases (name, holder, expires_at, version, own_targets)
SELECT $1::text, $2::text, $3::timestamptz, $5::text, true
WHERE $4::int8 = 0 OR EXISTS (SELECT 1 FROM leases AS l WHERE l.name = $1::text)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at, version = excluded.version,
    own_targets = true
WHERE leases.holder::int8 >= $4::int8
RETURNING name;

-- The names and versions of the replicas whose marks are kept until later than $1.
-- name: replicas
SELECT name, version FROM leases WHERE name LIKE 'mark %' AND expires_at > $1 ORDER BY name;

-- The epochs of the last announcements of groups, nodes, credentials and operators, 0 where there was none, and whether
-- there are watches.
-- name: announced
SELECT (SELECT coalesce(max(g.epoch), 0) FROM groups AS g) AS groups,
    (SELECT coalesce(max(n.epoch), 0) FROM nodes AS n) AS nodes,
    (SELECT coalesce(max(c.epoch), 0) FROM credentials AS c) AS credentials,
    (SELECT coalesce(max(o.epoch), 0) FROM operators AS o) AS operators,
    EXISTS (SELECT 1 FROM watches) AS watched;

-- Groups that changed after an epoch; with the rehearsal that their nodes do now, as the release's id and the attempt,
-- and the interval of their nodes' backups.
-- name: groups_since
SELECT g.id::text AS id, g.name, g.release_id::text AS release_id, g.generation, r.number AS release_number,
    (SELECT coalesce(max(x.number), 0) FROM releases AS x WHERE x.group_id = g.id) AS newest_number,
    coalesce(o.release_id::text || '.' || o.attempt::text, '') AS rehearsal,
    coalesce((g.backup ->> 'interval')::float8, 0) AS backup
FROM groups AS g LEFT JOIN releases AS r ON r.id = g.release_id
    LEFT JOIN rollouts AS o ON o.group_id = g.id AND o.state = 'running' AND o.step = 0
WHERE g.epoch > $1;

-- Groups by id.
-- name: groups_by_id
SELECT g.id::text AS id, g.name, g.release_id::text AS release_id, g.generation, r.number AS release_number,
    (SELECT coalesce(max(x.number), 0) FROM releases AS x WHERE x.group_id = g.id) AS newest_number,
    coalesce(o.release_id::text || '.' || o.attempt::text, '') AS rehearsal,
    coalesce((g.backup ->> 'interval')::float8, 0) AS backup
FROM groups AS g LEFT JOIN releases AS r ON r.id = g.release_id
    LEFT JOIN rollouts AS o ON o.group_id = g.id AND o.state = 'running' AND o.step = 0
WHERE g.id = ANY($1::text[]::uuid[]);

-- Nodes that changed after an epoch.
-- name: nodes_since
SELECT n.id::text AS id, n.name, n.group_id::text AS group_id, n.epoch, n.generation, n.confirmed_generation, n.digest,
    n.capabilities_digest, n.ran_generation, n.removed_at IS NOT NULL AS removed, n.state = 'revoked' AS revoked,
    n.release_id::text AS release_id, r.number AS release_number,
    coalesce(n.moved_generation, n.generation) AS moved_generation, coalesce(n.restore_id::text, '') AS restore_id
FROM nodes AS n LEFT JOIN releases AS r ON r.id = n.release_id WHERE n.epoch > $1;

-- Nodes by id.
-- name: nodes_by_id
SELECT n.id::text AS id, n.name, n.group_id::text AS group_id, n.epoch, n.generation, n.confirmed_generation, n.digest,
    n.capabilities_digest, n.ran_generation, n.removed_at IS NOT NULL AS removed, n.state = 'revoked' AS revoked,
    n.release_id::text AS release_id, r.number AS release_number,
    coalesce(n.moved_generation, n.generation) AS moved_generation, coalesce(n.restore_id::text, '') AS restore_id
FROM nodes AS n LEFT JOIN releases AS r ON r.id = n.release_id WHERE n.id = ANY($1::text[]::uuid[]);

-- Credentials that changed after an epoch, with revoked ones: a held poll may use one.
-- name: credentials_since
SELECT id::text AS id, node_id::text AS node_id, secret_hash, created_at, revoked_at, first_used_at,
    replaces::text AS replaces
FROM credentials WHERE epoch > $1;

-- Credentials by id.
-- name: credentials_by_id
SELECT id::text AS id, node_id::text AS node_id, secret_hash, created_at, revoked_at, first_used_at,
    replaces::text AS replaces
FROM credentials WHERE id = ANY($1::text[]::uuid[]);

-- Operators that changed after an epoch.
-- name: operators_since
SELECT id::text AS id, name, role, secret_hash, revoked_at, grants, expires_at, issuer, subject, shown_name,
    old_secret_hash, rotated_at, old_ends_at
FROM operators WHERE epoch > $1;

-- Operators by id.
-- name: operators_by_id
SELECT id::text AS id, name, role, secret_hash, revoked_at, grants, expires_at, issuer, subject, shown_name,
    old_secret_hash, rotated_at, old_ends_at
FROM operators WHERE id = ANY($1::text[]::uuid[]);

-- The watches that are alive at $1, the oldest first.
-- name: watches
SELECT id::text AS id, viewer, operator, node_id::text AS node_id, group_ids, question, rate FROM watches
WHERE expires_at > $1 ORDER BY made_at, id;
