-- How many nodes stand how. A node is at its target when neither it nor its group has a release, or when it was confirmed
-- at the generation of its target. Removed nodes aren't counted.

-- All groups, each with the number of its release, and the release before that.
-- name: groups
SELECT g.id::text AS id, g.name, r.number AS release, e.number AS earlier_release
FROM groups AS g LEFT JOIN releases AS r ON r.id = g.release_id
    LEFT JOIN releases AS e ON e.group_id = g.id AND e.number = r.number - 1
WHERE g.deleted_at IS NULL;

-- Nodes by group, state, whether they are at their target, whether they run the release before that, the code of their
-- last sync's error, and the number of their own release, if that is their target; the release before it is then their
-- group's. All columns of nodes are in the index nodes_by_standing, and they are counted before they are joined: that
-- takes a third of the time. Held nodes are counted once more, by an index of theirs (nodes_held), and say so, with the
-- number of the release that they have brought back. A generation that gives nodes their own release gives it to no others. A release before it
-- that never was the group's, since its rollout wasn't done, tells nothing of what nodes run.
-- name: counts
SELECT n.group_id::text AS group_id, n.state,
    (o.number IS NULL AND g.release_id IS NULL)
        OR n.confirmed_generation >= greatest(n.generation, g.generation) AS at_target,
    coalesce(
        CASE
            WHEN o.number IS NOT NULL THEN g.release_id IS NOT NULL AND n.confirmed_generation >= g.generation
            WHEN e.number IS NOT NULL THEN n.confirmed_generation >= greatest(n.generation, e.generation)
        END, false
    ) AS at_earlier, n.error_code, o.number AS own_release, n.held, n.restored, sum(n.nodes)::int8 AS nodes
FROM (
    SELECT m.group_id, m.error_code, m.state, m.confirmed_generation, m.generation, false AS held, NULL::int8 AS restored,
        count(*) AS nodes
    FROM nodes AS m WHERE m.removed_at IS NULL
    GROUP BY m.group_id, m.error_code, m.state, m.confirmed_generation, m.generation
    UNION ALL
    SELECT h.group_id, h.error_code, h.state, h.confirmed_generation, h.generation, true AS held, h.restored,
        count(*) AS nodes
    FROM (
        SELECT m.group_id, m.error_code, m.state, m.confirmed_generation, m.generation, (
            SELECT x.number FROM releases AS x WHERE x.group_id = m.group_id AND x.id = (
                SELECT w.release_id FROM restores AS w
                WHERE w.node_id = m.id AND w.state IN ('held', 'done') AND w.told_at >= coalesce(m.synced_at, w.told_at)
                ORDER BY w.made_at DESC, w.id DESC LIMIT 1
            )
        ) AS restored
        FROM nodes AS m WHERE m.removed_at IS NULL AND m.restore_id IS NOT NULL
    ) AS h
    GROUP BY h.group_id, h.error_code, h.state, h.confirmed_generation, h.generation, h.restored
) AS n JOIN groups AS g ON g.id = n.group_id LEFT JOIN releases AS r ON r.id = g.release_id
    LEFT JOIN (
        SELECT x.group_id, x.number, x.generation
        FROM releases AS x LEFT JOIN rollouts AS w ON w.release_id = x.id AND w.state <> 'done'
        WHERE w.release_id IS NULL
    ) AS e ON e.group_id = g.id AND e.number = r.number - 1
    LEFT JOIN (
        SELECT y.group_id, y.number, s.generation
        FROM (SELECT DISTINCT m.release_id, m.generation FROM nodes AS m WHERE m.release_id IS NOT NULL) AS s
            JOIN releases AS y ON y.id = s.release_id
    ) AS o ON o.group_id = n.group_id AND o.generation = n.generation AND n.generation > g.generation
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;

-- Overdue nodes, by the same. Of a revoked node nothing is expected, nor of a held one.
-- name: overdue
SELECT n.group_id::text AS group_id, n.state,
    coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id) IS NULL
        OR n.confirmed_generation >= greatest(n.generation, g.generation) AS at_target,
    n.error_code <> '' AS has_error, count(*) AS nodes
FROM node_presence AS p JOIN nodes AS n ON n.id = p.node_id JOIN groups AS g ON g.id = n.group_id
WHERE p.overdue = true AND n.removed_at IS NULL AND n.state <> 'revoked' AND n.restore_id IS NULL
GROUP BY 1, 2, 3, 4;

-- Cloned nodes, by group.
-- name: cloned
SELECT n.group_id::text AS group_id, count(*) AS nodes FROM node_presence AS p JOIN nodes AS n ON n.id = p.node_id
WHERE p.cloned = true AND p.crossed_at IS NOT NULL AND n.removed_at IS NULL GROUP BY 1;

-- Some failing nodes of each of these causes: one element of each array for each cause, its group and its code.
-- name: examples
SELECT c.group_id, c.error_code, f.name, f.error_message, f.error_at
FROM unnest($1::text[], $2::text[]) AS c (group_id, error_code), LATERAL (
    SELECT n.name, n.error_message, n.error_at
    FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    WHERE n.group_id = c.group_id::uuid AND n.error_code = c.error_code AND n.removed_at IS NULL AND n.state <> 'revoked'
        AND coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id) IS NOT NULL
        AND n.confirmed_generation < greatest(n.generation, g.generation)
    LIMIT $3
) AS f;

-- A letter for each node's standing, and the nodes' names with spaces between them, by group, in the order of the label
-- `site` and the name.
-- name: grid
SELECT s.group_id::text AS group_id, string_agg(s.letter, '' ORDER BY s.site, s.name) AS letters,
    string_agg(s.name, ' ' ORDER BY s.site, s.name) AS names
FROM (
    SELECT n.group_id, n.name, coalesce(n.labels ->> 'site', '') AS site,
        CASE
            WHEN n.state = 'revoked' THEN 'r'
            WHEN n.error_code <> ''
                AND coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id) IS NOT NULL
                AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 'f'
            WHEN n.state = 'offline' THEN 'o'
            WHEN n.state = 'syncing' THEN 's'
            WHEN n.restore_id IS NOT NULL THEN 'h'
            WHEN coalesce(CASE WHEN n.generation > g.generation THEN n.release_id END, g.release_id) IS NOT NULL
                AND n.confirmed_generation < greatest(n.generation, g.generation) THEN 'b'
            ELSE 't'
        END AS letter
    FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
    WHERE n.removed_at IS NULL
) AS s
GROUP BY s.group_id;
