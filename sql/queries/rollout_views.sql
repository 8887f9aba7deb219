-- What is shown of rollouts, besides their rows.

-- How many nodes each of these rollouts ($1) has started, how many nodes its group has that aren't revoked, how many of
-- those are offline, and the group's newest release.
-- name: sizes
SELECT o.release_id,
    (SELECT count(*) FROM rollout_nodes AS k WHERE k.release_id = o.release_id) AS started,
    (SELECT count(*) FROM nodes AS n
        WHERE n.group_id = o.group_id AND n.removed_at IS NULL AND n.state <> 'revoked') AS nodes,
    (SELECT count(*) FROM nodes AS n
        WHERE n.group_id = o.group_id AND n.removed_at IS NULL AND n.state NOT IN ('online', 'syncing', 'revoked')
    ) AS offline,
    (SELECT max(r.number) FROM releases AS r WHERE r.group_id = o.group_id) AS newest
FROM rollouts AS o WHERE o.release_id = ANY($1::text[]::uuid[]);

-- The nodes of a rollout ($1) by name, after a name ($2); with an outcome ($3), if given. A node whose target is the release
-- has the outcome of now. Of an ended rollout whose release isn't the target any more, all that is known is which nodes
-- it was the target of until another one took its place.
-- name: nodes
WITH seen AS (
    SELECT n.name, k.step, k.started_at, n.synced_at, n.error_code, n.error_message,
        n.group_id <> o.group_id OR n.removed_at IS NOT NULL OR n.state = 'revoked' AS gone,
        n.state IN ('online', 'syncing') AS online, n.restore_id IS NOT NULL AS held,
        coalesce(CASE WHEN n.generation > g.generation THEN coalesce(n.release_id, g.release_id) ELSE g.release_id END
            = o.release_id, false) AS meant,
        n.confirmed_generation >= greatest(n.generation, g.generation) AS reached,
        n.error_code <> '' AND n.error_at >= coalesce(k.started_at, o.ended_at, n.error_at) AS failing,
        o.state NOT IN ('running', 'paused') AS ended
    FROM rollouts AS o JOIN groups AS g ON g.id = o.group_id
        JOIN nodes AS n ON n.group_id = o.group_id
            OR n.id IN (SELECT s.node_id FROM rollout_nodes AS s WHERE s.release_id = o.release_id)
        LEFT JOIN rollout_nodes AS k ON k.release_id = o.release_id AND k.node_id = n.id
    WHERE o.release_id = $1
), shown AS (
    SELECT name, step, started_at, CASE WHEN meant AND reached THEN greatest(started_at, synced_at) END AS reached_at,
        CASE WHEN meant AND NOT reached AND failing THEN error_code ELSE '' END AS error_code,
        CASE WHEN meant AND NOT reached AND failing THEN error_message ELSE '' END AS error_message,
        CASE
            WHEN gone THEN 'left'
            WHEN meant AND held THEN 'held'
            WHEN meant AND reached THEN 'at_target'
            WHEN meant AND failing THEN 'failed'
            WHEN meant AND NOT online THEN 'offline'
            WHEN meant THEN 'syncing'
            WHEN ended AND step IS NOT NULL THEN 'superseded'
            ELSE 'waiting'
        END AS outcome
    FROM seen WHERE NOT gone OR step IS NOT NULL
)
SELECT name, outcome, step, started_at, reached_at, error_code, error_message
FROM shown WHERE name > $2 AND ($3::text IS NULL OR outcome = $3) ORDER BY name LIMIT $4;

-- How many nodes of a rollout have each outcome, as above, by the step that started them; 0: none has.
-- name: counts
WITH seen AS (
    SELECT k.step, n.group_id <> o.group_id OR n.removed_at IS NOT NULL OR n.state = 'revoked' AS gone,
        n.state IN ('online', 'syncing') AS online, n.restore_id IS NOT NULL AS held,
        coalesce(CASE WHEN n.generation > g.generation THEN coalesce(n.release_id, g.release_id) ELSE g.release_id END
            = o.release_id, false) AS meant,
        n.confirmed_generation >= greatest(n.generation, g.generation) AS reached,
        n.error_code <> '' AND n.error_at >= coalesce(k.started_at, o.ended_at, n.error_at) AS failing,
        o.state NOT IN ('running', 'paused') AS ended
    FROM rollouts AS o JOIN groups AS g ON g.id = o.group_id
        JOIN nodes AS n ON n.group_id = o.group_id
            OR n.id IN (SELECT s.node_id FROM rollout_nodes AS s WHERE s.release_id = o.release_id)
        LEFT JOIN rollout_nodes AS k ON k.release_id = o.release_id AND k.node_id = n.id
    WHERE o.release_id = $1
), shown AS (
    SELECT coalesce(step, 0) AS step,
        CASE
            WHEN gone THEN 'left'
            WHEN meant AND held THEN 'held'
            WHEN meant AND reached THEN 'at_target'
            WHEN meant AND failing THEN 'failed'
            WHEN meant AND NOT online THEN 'offline'
            WHEN meant THEN 'syncing'
            WHEN ended AND step IS NOT NULL THEN 'superseded'
            ELSE 'waiting'
        END AS outcome
    FROM seen WHERE NOT gone OR step IS NOT NULL
)
SELECT step, outcome, count(*) AS nodes FROM shown GROUP BY step, outcome;

-- What the nodes of a rollout's ($1) group have found in an attempt's ($2) rehearsal: those that failed first, then those
-- of which nothing is known, by name after an order and name ($4, $5); with an outcome ($3), if given. While they may
-- still report ($6), those are pending whose protocol knows rehearsals ($7).
-- name: rehearsals
WITH told AS (
    SELECT n.name, coalesce(h.outcome, 'unknown') AS outcome,
        CASE
            WHEN h.outcome IS NOT NULL THEN h.code
            WHEN n.state NOT IN ('online', 'syncing') THEN 'offline'
            WHEN n.restore_id IS NOT NULL THEN 'held'
            WHEN n.protocol < $7::int8 THEN 'too_old'
            WHEN $6::bool THEN 'pending'
            ELSE 'no_answer'
        END AS code,
        coalesce(h.message, '') AS message, h.report, h.told_at,
        CASE h.outcome WHEN 'failed' THEN 0 WHEN 'passed' THEN 2 ELSE 1 END AS place
    FROM rollouts AS o JOIN nodes AS n ON n.group_id = o.group_id AND n.removed_at IS NULL AND n.state <> 'revoked'
        LEFT JOIN rehearsals AS h ON h.release_id = o.release_id AND h.node_id = n.id AND h.attempt = $2::int8
    WHERE o.release_id = $1
)
SELECT name, outcome, code, message, report, told_at, place FROM told
WHERE ($3::text IS NULL OR outcome = $3) AND (place, name) > ($4::int8, $5::text)
ORDER BY place, name LIMIT $8;

-- How many nodes have which outcome, as above; `pending` for those that may still report.
-- name: rehearsed
SELECT t.outcome, count(*) AS nodes
FROM (
    SELECT CASE
        WHEN h.outcome IS NOT NULL THEN h.outcome
        WHEN $3::bool AND n.state IN ('online', 'syncing') AND n.restore_id IS NULL AND n.protocol >= $4::int8 THEN 'pending'
        ELSE 'unknown'
    END AS outcome
    FROM rollouts AS o JOIN nodes AS n ON n.group_id = o.group_id AND n.removed_at IS NULL AND n.state <> 'revoked'
        LEFT JOIN rehearsals AS h ON h.release_id = o.release_id AND h.node_id = n.id AND h.attempt = $2::int8
    WHERE o.release_id = $1
) AS t
GROUP BY t.outcome;

-- Whether a node has reported a rehearsal of a release.
-- name: any_rehearsed
SELECT EXISTS (SELECT 1 FROM rehearsals WHERE release_id = $1);

-- The schemas that resulted on nodes whose rehearsal passed, in an attempt ($2) of a rollout ($1), most nodes first.
-- name: digests
SELECT h.report ->> 'schema_digest' AS digest, count(*) AS nodes FROM rehearsals AS h
WHERE h.release_id = $1 AND h.attempt = $2 AND h.outcome = 'passed' AND h.report ->> 'schema_digest' <> ''
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $3;

-- What each schema change did on nodes' copies, in an attempt ($2) of a rollout ($1). A report leaves out what is 0.
-- name: changes
SELECT (c.value ->> 'number')::int8 AS number, max(c.value ->> 'name') AS name, count(*) AS nodes,
    coalesce(sum((c.value ->> 'rows')::int8), 0)::int8 AS rows,
    coalesce(max((c.value ->> 'seconds')::float8), 0) AS seconds, coalesce(max((c.value ->> 'stall')::float8), 0) AS stall
FROM rehearsals AS h, LATERAL jsonb_array_elements(h.report -> 'changes') AS c (value)
WHERE h.release_id = $1 AND h.attempt = $2
GROUP BY 1 ORDER BY 1;

-- The policy of a group.
-- name: group_policy
SELECT policy FROM groups WHERE name = $1 AND deleted_at IS NULL;
