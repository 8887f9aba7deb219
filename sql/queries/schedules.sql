-- Lines of functions' schedules, as nodes told of them since a time: of each group (NULL: of all), what its nodes have.
-- Times are 0 if no node has one. `example`: the first of the nodes whose last run failed.
-- name: of_groups
SELECT g.name AS group_name, l.value ->> 'function' AS function, l.value ->> 'cron' AS cron, count(*) AS nodes,
    count(CASE WHEN l.value ->> 'last_status' NOT IN ('', 'ok') THEN 1 END) AS failing,
    min(CASE WHEN l.value ->> 'last_status' NOT IN ('', 'ok') THEN n.name END) AS example,
    max((l.value ->> 'last_run')::int8) AS last_run,
    coalesce(min(CASE WHEN l.value ->> 'next_run' <> '0' THEN (l.value ->> 'next_run')::int8 END), 0) AS next_run,
    max((l.value ->> 'late')::int8) AS late, sum((l.value ->> 'failures')::int8)::int8 AS failures
FROM node_numbers AS m JOIN nodes AS n ON n.id = m.node_id JOIN groups AS g ON g.id = n.group_id,
    LATERAL jsonb_array_elements(m.schedules) AS l (value)
WHERE m.told_at >= $1 AND n.removed_at IS NULL AND n.state <> 'revoked'
GROUP BY g.name, l.value ->> 'function', l.value ->> 'cron'
ORDER BY 1, 2, 3;
