-- What nodes found in rehearsals, over all of them, and policies of groups.

-- The schemas that resulted on nodes whose rehearsal passed, in an attempt ($2) of a rollout ($1), most nodes first.
-- name: digests
SELECT h.report ->> 'schema_digest' AS digest, count(*) AS nodes FROM rehearsals AS h
WHERE h.release_id = $1 AND h.attempt = $2 AND h.outcome = 'passed' AND h.report ->> 'schema_digest' <> ''
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $3;

-- What each schema change did on nodes' copies, in an attempt ($2) of a rollout ($1).
-- name: changes
SELECT (c.value ->> 'number')::int8 AS number, max(c.value ->> 'name') AS name, count(*) AS nodes,
    sum((c.value ->> 'rows')::int8)::int8 AS rows, max((c.value ->> 'seconds')::float8) AS seconds,
    max((c.value ->> 'stall')::float8) AS stall
FROM rehearsals AS h, LATERAL jsonb_array_elements(h.report -> 'changes') AS c (value)
WHERE h.release_id = $1 AND h.attempt = $2
GROUP BY 1 ORDER BY 1;

-- The policy of a group.
-- name: policy
SELECT policy FROM groups WHERE name = $1 AND deleted_at IS NULL;
