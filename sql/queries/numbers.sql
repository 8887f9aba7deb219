-- What nodes tell of their calls and of themselves: by group, minute and hour, and the last of each node.

-- The functions of releases: one element of each array for each release, its group and its number.
-- name: release_functions
SELECT r.group_id::text AS group_id, r.number, f.name
FROM unnest($1::text[], $2::text[]) AS w (group_id, number)
    JOIN releases AS r ON r.group_id = w.group_id::uuid AND r.number = w.number::int8
    JOIN release_functions AS f ON f.release_id = r.id;

-- Write what a replica has counted of a group in a minute: all of it, each time.
-- name: write_minute
INSERT INTO group_minutes (group_id, minute, replica, body) VALUES ($1, $2, $3, $4)
ON CONFLICT (group_id, minute, replica) DO UPDATE SET body = excluded.body;

-- Minutes of groups from a time on, before another one.
-- name: minutes
SELECT group_id::text AS group_id, minute, replica::text AS replica, body FROM group_minutes
WHERE group_id = ANY($1::text[]::uuid[]) AND minute >= $2 AND minute < $3;

-- Hours of groups from a time on, before another one.
-- name: hours
SELECT group_id::text AS group_id, hour, body FROM group_hours
WHERE group_id = ANY($1::text[]::uuid[]) AND hour >= $2 AND hour < $3;

-- Groups that have minutes of an hour, from $1 to before $2, and no sum of it yet.
-- name: without_hour
SELECT g.id::text AS id FROM groups AS g
WHERE EXISTS (SELECT 1 FROM group_minutes AS m WHERE m.group_id = g.id AND m.minute >= $1 AND m.minute < $2)
    AND NOT EXISTS (SELECT 1 FROM group_hours AS h WHERE h.group_id = g.id AND h.hour = $1);

-- Write a group's sum of an hour.
-- name: write_hour
INSERT INTO group_hours (group_id, hour, body) VALUES ($1, $2, $3)
ON CONFLICT (group_id, hour) DO UPDATE SET body = excluded.body;

-- All groups.
-- name: groups
SELECT id::text AS id FROM groups;

-- Delete old minutes of a group.
-- name: delete_minutes
DELETE FROM group_minutes WHERE (group_id, minute, replica) IN
    (SELECT m.group_id, m.minute, m.replica FROM group_minutes AS m WHERE m.group_id = $1 AND m.minute < $2 LIMIT $3);

-- Delete old hours of a group.
-- name: delete_hours
DELETE FROM group_hours WHERE (group_id, hour) IN
    (SELECT h.group_id, h.hour FROM group_hours AS h WHERE h.group_id = $1 AND h.hour < $2 LIMIT $3);

-- Write what nodes told of themselves, one element of each array for each node. A node that is gone is left out.
-- name: write_nodes
INSERT INTO node_numbers (node_id, group_id, told_at, database_bytes, wal_bytes, disk_free_bytes, memory_bytes,
    certificate_ends, credential_ends, edge, trust, trust_ends, schedules)
SELECT n.id, u.group_id::uuid, u.told_at::timestamptz, u.database_bytes::int8, u.wal_bytes::int8,
    u.disk_free_bytes::int8, u.memory_bytes::int8, u.certificate_ends::int8, u.credential_ends::int8, u.edge, u.trust,
    u.trust_ends::int8, u.schedules::jsonb
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[])
    AS u (node_id, group_id, database_bytes, wal_bytes, disk_free_bytes, memory_bytes, certificate_ends,
        credential_ends, edge, trust, trust_ends, schedules, told_at)
    JOIN nodes AS n ON n.id = u.node_id::uuid
ON CONFLICT (node_id) DO UPDATE SET group_id = excluded.group_id, told_at = excluded.told_at,
    database_bytes = excluded.database_bytes, wal_bytes = excluded.wal_bytes,
    disk_free_bytes = excluded.disk_free_bytes, memory_bytes = excluded.memory_bytes,
    certificate_ends = excluded.certificate_ends, credential_ends = excluded.credential_ends, edge = excluded.edge,
    trust = excluded.trust, trust_ends = excluded.trust_ends, schedules = excluded.schedules;

-- What the nodes of each group reported since a time. The earliest ends are 0 if no node has one.
-- name: of_groups
SELECT group_id::text AS group_id, edge, count(*) AS nodes, sum(database_bytes)::int8 AS database_sum,
    max(database_bytes) AS database_max, max(wal_bytes) AS wal_max, min(disk_free_bytes) AS disk_free_min,
    sum(memory_bytes)::int8 AS memory_sum,
    coalesce(min(CASE WHEN certificate_ends > 0 THEN certificate_ends END), 0) AS certificate_ends_min,
    coalesce(min(CASE WHEN credential_ends > 0 THEN credential_ends END), 0) AS credential_ends_min,
    coalesce(min(CASE WHEN trust_ends > 0 THEN trust_ends END), 0) AS trust_ends_min
FROM node_numbers WHERE told_at >= $1 GROUP BY group_id, edge;

-- A node's last report about itself.
-- name: of_node
SELECT told_at, database_bytes, wal_bytes, disk_free_bytes, memory_bytes, certificate_ends, credential_ends, edge,
    trust_ends, schedules
FROM node_numbers WHERE node_id = $1;
