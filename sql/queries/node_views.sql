-- The id of a group.
-- name: group
SELECT id FROM groups WHERE name = $1;

-- A node that wasn't removed, by its id.
-- name: by_id
SELECT n.id, n.name, n.group_id, g.name AS group_name FROM nodes n JOIN groups g ON g.id = n.group_id
WHERE n.id = $1 AND n.removed_at IS NULL;

-- A node that wasn't removed, by its name.
-- name: by_name
SELECT n.id, n.name, n.group_id, g.name AS group_name FROM nodes n JOIN groups g ON g.id = n.group_id
WHERE n.name = $1 AND n.removed_at IS NULL;

-- Nodes by name, after a name; of some groups ($2), in one state ($3), of one standing ($4), failing with one code ($5),
-- with a label ($6) of one value ($7), with a part of the name ($8), that run their group's release of a number ($9), that
-- are overdue ($10), that weren't seen since a time ($11), with one of these names ($12), whose backup has
-- a fault ($13): not proven since $14, or the store behind by more than $15 seconds and $16 intervals; if given.
-- name: nodes
SELECT n.id, n.name, g.name AS group_name, n.labels, n.state, n.state_since, n.joined_at, p.last_seen_at,
    greatest(n.synced_at, p.last_sync_at) AS last_sync_at, n.confirmed_generation,
    greatest(n.generation, g.generation) AS target_generation, n.schema_version, r.id AS release_id, r.schema_floor, n.failures,
    n.syncs_folded, n.error_code, n.error_message, n.error_at, n.retry_at,
    left(coalesce(n.capabilities ->> 'version', ''), 64) AS version, n.restore_id IS NOT NULL AS held
FROM nodes n JOIN groups g ON g.id = n.group_id
    LEFT JOIN releases r ON r.id = coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id)
    LEFT JOIN node_presence p ON p.node_id = n.id
WHERE n.removed_at IS NULL AND n.name > $1 AND ($2::text[] IS NULL OR g.name = ANY($2::text[])) AND ($3::text IS NULL OR n.state = $3)
    AND ($4::text IS NULL OR $4 = CASE
        WHEN n.state = 'revoked' THEN n.state
        WHEN n.error_code <> '' AND r.id IS NOT NULL
            AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 'failing'
        WHEN n.state <> 'online' THEN n.state
        WHEN n.restore_id IS NOT NULL THEN 'held'
        WHEN r.id IS NOT NULL AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 'behind'
        ELSE 'at_target'
    END)
    AND ($5::text IS NULL OR (n.error_code = $5 AND n.state <> 'revoked' AND r.id IS NOT NULL
        AND n.confirmed_generation < greatest(n.generation, g.generation)))
    AND ($6::text IS NULL OR (n.labels ->> $6 IS NOT NULL AND ($7::text IS NULL OR n.labels ->> $6 = $7)))
    AND ($8::text IS NULL OR strpos(n.name, $8) > 0)
    AND ($9::int8 IS NULL OR $9 = coalesce(
        CASE WHEN n.confirmed_generation >= coalesce(n.moved_generation, n.generation) THEN coalesce(
            (
                SELECT max(x.number) FROM rollout_nodes w JOIN releases x ON x.id = w.release_id
                WHERE w.node_id = n.id AND w.generation = n.confirmed_generation AND x.group_id = n.group_id
            ), (
                SELECT max(x.number) FROM releases x
                WHERE x.group_id = n.group_id AND x.generation <= n.confirmed_generation
                    AND NOT EXISTS (SELECT 1 FROM rollouts w WHERE w.release_id = x.id AND w.state <> 'done')
            )
        ) END,
        CASE WHEN n.restore_id IS NOT NULL THEN (
            SELECT x.number FROM releases AS x WHERE x.group_id = n.group_id AND x.id = (
                SELECT w.release_id FROM restores AS w
                WHERE w.node_id = n.id AND w.state IN ('held', 'done') AND w.told_at >= coalesce(n.synced_at, w.told_at)
                ORDER BY w.made_at DESC, w.id DESC LIMIT 1
            )
        ) END
    ))
    AND (NOT $10::bool OR (p.overdue AND n.state <> 'revoked' AND n.restore_id IS NULL))
    AND ($11::timestamptz IS NULL OR p.last_seen_at < $11)
    AND ($12::text[] IS NULL OR n.name = ANY($12::text[]))
    AND ($13::text IS NULL OR (g.backup IS NOT NULL AND n.state <> 'revoked' AND ($13::text = 'missing') <> EXISTS (
        SELECT 1 FROM backups AS b WHERE b.node_id = n.id AND b.ended_at IS NULL AND CASE $13::text
            WHEN 'missing' THEN true
            WHEN 'failing' THEN b.error <> ''
            WHEN 'drill' THEN b.drill_error <> ''
            WHEN 'unproven' THEN coalesce(b.proven_at, b.begun_at) < $14::timestamptz
            ELSE extract(epoch FROM b.told_at - coalesce(b.reached_at, b.begun_at))::float8
                > greatest($15::float8, $16::float8 * (g.backup ->> 'interval')::float8)
        END
    )))
ORDER BY n.name LIMIT $17;

-- The same in another order ($17): by their standing, the worst first, or, where it is `seen`, by when they were last seen,
-- the longest ago first; after a place in it ($18) and a name.
-- name: nodes_in_order
SELECT id, name, group_name, labels, state, state_since, joined_at, last_seen_at, last_sync_at, confirmed_generation,
    target_generation, schema_version, release_id, schema_floor, failures, syncs_folded, error_code, error_message, error_at,
    retry_at, version, held, place
FROM (
    SELECT n.id, n.name, g.name AS group_name, n.labels, n.state, n.state_since, n.joined_at, p.last_seen_at,
        greatest(n.synced_at, p.last_sync_at) AS last_sync_at, n.confirmed_generation,
        greatest(n.generation, g.generation) AS target_generation, n.schema_version, r.id AS release_id, r.schema_floor, n.failures,
        n.syncs_folded, n.error_code, n.error_message, n.error_at, n.retry_at,
        left(coalesce(n.capabilities ->> 'version', ''), 64) AS version, n.restore_id IS NOT NULL AS held,
        CASE
            WHEN $17 = 'seen' THEN (extract(epoch FROM coalesce(p.last_seen_at, n.joined_at)) * 1000000)::int8
            WHEN n.state = 'revoked' THEN 0
            WHEN n.error_code <> '' AND r.id IS NOT NULL
                AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 1
            WHEN n.state = 'offline' THEN 2
            WHEN n.state = 'syncing' THEN 3
            WHEN n.restore_id IS NOT NULL THEN 4
            WHEN r.id IS NOT NULL AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 5
            ELSE 6
        END AS place
    FROM nodes n JOIN groups g ON g.id = n.group_id
        LEFT JOIN releases r ON r.id = coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id)
        LEFT JOIN node_presence p ON p.node_id = n.id
    WHERE n.removed_at IS NULL AND ($2::text[] IS NULL OR g.name = ANY($2::text[])) AND ($3::text IS NULL OR n.state = $3)
        AND ($4::text IS NULL OR $4 = CASE
            WHEN n.state = 'revoked' THEN n.state
            WHEN n.error_code <> '' AND r.id IS NOT NULL
                AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 'failing'
            WHEN n.state <> 'online' THEN n.state
            WHEN n.restore_id IS NOT NULL THEN 'held'
            WHEN r.id IS NOT NULL AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 'behind'
            ELSE 'at_target'
        END)
        AND ($5::text IS NULL OR (n.error_code = $5 AND n.state <> 'revoked' AND r.id IS NOT NULL
            AND n.confirmed_generation < greatest(n.generation, g.generation)))
        AND ($6::text IS NULL OR (n.labels ->> $6 IS NOT NULL AND ($7::text IS NULL OR n.labels ->> $6 = $7)))
        AND ($8::text IS NULL OR strpos(n.name, $8) > 0)
        AND ($9::int8 IS NULL OR $9 = coalesce(
            CASE WHEN n.confirmed_generation >= coalesce(n.moved_generation, n.generation) THEN coalesce(
                (
                    SELECT max(x.number) FROM rollout_nodes w JOIN releases x ON x.id = w.release_id
                    WHERE w.node_id = n.id AND w.generation = n.confirmed_generation AND x.group_id = n.group_id
                ), (
                    SELECT max(x.number) FROM releases x
                    WHERE x.group_id = n.group_id AND x.generation <= n.confirmed_generation
                        AND NOT EXISTS (SELECT 1 FROM rollouts w WHERE w.release_id = x.id AND w.state <> 'done')
                )
            ) END,
            CASE WHEN n.restore_id IS NOT NULL THEN (
                SELECT x.number FROM releases AS x WHERE x.group_id = n.group_id AND x.id = (
                    SELECT w.release_id FROM restores AS w
                    WHERE w.node_id = n.id AND w.state IN ('held', 'done') AND w.told_at >= coalesce(n.synced_at, w.told_at)
                    ORDER BY w.made_at DESC, w.id DESC LIMIT 1
                )
            ) END
        ))
        AND (NOT $10::bool OR (p.overdue AND n.state <> 'revoked' AND n.restore_id IS NULL))
        AND ($11::timestamptz IS NULL OR p.last_seen_at < $11)
        AND ($12::text[] IS NULL OR n.name = ANY($12::text[]))
        AND ($13::text IS NULL OR (g.backup IS NOT NULL AND n.state <> 'revoked' AND ($13::text = 'missing') <> EXISTS (
            SELECT 1 FROM backups AS b WHERE b.node_id = n.id AND b.ended_at IS NULL AND CASE $13::text
                WHEN 'missing' THEN true
                WHEN 'failing' THEN b.error <> ''
                WHEN 'drill' THEN b.drill_error <> ''
                WHEN 'unproven' THEN coalesce(b.proven_at, b.begun_at) < $14::timestamptz
                ELSE extract(epoch FROM b.told_at - coalesce(b.reached_at, b.begun_at))::float8
                    > greatest($15::float8, $16::float8 * (g.backup ->> 'interval')::float8)
            END
        )))
) AS found
WHERE (place, name) > ($18::int8, $1)
ORDER BY place, name LIMIT $19;

-- One node.
-- name: node
SELECT n.id, n.name, g.name AS group_name, n.labels, n.state, n.state_since, n.joined_at, p.last_seen_at,
    greatest(n.synced_at, p.last_sync_at) AS last_sync_at, n.confirmed_generation,
    greatest(n.generation, g.generation) AS target_generation, n.schema_version, r.id AS release_id, r.schema_floor, n.failures,
    n.syncs_folded, n.error_code, n.error_message, n.error_at, n.retry_at,
    left(coalesce(n.capabilities ->> 'version', ''), 64) AS version, n.restore_id IS NOT NULL AS held, n.capabilities, n.protocol, n.schema_changes
FROM nodes n JOIN groups g ON g.id = n.group_id
    LEFT JOIN releases r ON r.id = coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id)
    LEFT JOIN node_presence p ON p.node_id = n.id
WHERE n.id = $1;

-- When the credential was made that a node uses: a successor ends it at its own first use.
-- name: credential
SELECT created_at FROM credentials WHERE node_id = $1 AND revoked_at IS NULL ORDER BY created_at LIMIT 1;

-- The functions that nodes reported.
-- name: functions
SELECT node_id, name, version, sha256, manifest_digest FROM node_functions
WHERE node_id = ANY($1::text[]::uuid[]) ORDER BY node_id, name;

-- The numbers of the releases that nodes run and should run. Of its group's a node runs none, null, until it has been
-- confirmed at one since it came to the group. At the generation by which a rollout has started it, it runs that one's
-- release; at any other, the group's of then: those of rollouts that weren't done never were that. A held node that
-- wasn't confirmed since a restore runs the release that it brought back, if that is of its group.
-- name: releases
SELECT n.id AS node_id, r.number AS target,
    coalesce(
        CASE WHEN n.confirmed_generation >= coalesce(n.moved_generation, n.generation) THEN coalesce(
            (
                SELECT max(x.number) FROM rollout_nodes AS w JOIN releases AS x ON x.id = w.release_id
                WHERE w.node_id = n.id AND w.generation = n.confirmed_generation AND x.group_id = n.group_id
            ), (
                SELECT max(x.number) FROM releases AS x
                WHERE x.group_id = n.group_id AND x.generation <= n.confirmed_generation
                    AND NOT EXISTS (SELECT 1 FROM rollouts AS w WHERE w.release_id = x.id AND w.state <> 'done')
            )
        ) END,
        CASE WHEN n.restore_id IS NOT NULL THEN (
            SELECT x.number FROM releases AS x WHERE x.group_id = n.group_id AND x.id = (
                SELECT w.release_id FROM restores AS w
                WHERE w.node_id = n.id AND w.state IN ('held', 'done') AND w.told_at >= coalesce(n.synced_at, w.told_at)
                ORDER BY w.made_at DESC, w.id DESC LIMIT 1
            )
        ) END
    ) AS runs
FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    LEFT JOIN releases AS r ON r.id = coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id)
WHERE n.id = ANY($1::text[]::uuid[]);

-- Open warnings of nodes.
-- name: warnings
SELECT node_id, kind, message, since FROM warnings
WHERE cleared_at IS NULL AND node_id = ANY($1::text[]::uuid[]) ORDER BY node_id, since;

-- Open syncs of nodes.
-- name: open_syncs
SELECT node_id, id, status, step, started_at FROM syncs
WHERE status = 'running' AND node_id = ANY($1::text[]::uuid[]);
