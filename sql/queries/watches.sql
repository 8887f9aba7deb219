-- Watches of nodes' records, and the records on their way between replicas.

-- The node of this name, or id ($2), that wasn't removed.
-- name: node
SELECT n.id::text AS id, n.group_id::text AS group_id, g.name AS group_name FROM nodes n JOIN groups g ON g.id = n.group_id
WHERE (n.name = $1 OR n.id = $2::text::uuid) AND n.removed_at IS NULL;

-- The groups of these names; all where there are none.
-- name: groups
SELECT id::text AS id FROM groups WHERE deleted_at IS NULL AND ($1::text[] IS NULL OR name = ANY($1::text[]));

-- How many nodes a watch of a node ($1) or of groups ($2; both NULL: of all) is about, by whether they can be asked:
-- those that are offline or revoked can't, nor can those of a version of the protocol before $3.
-- name: count_nodes
SELECT n.state IN ('offline', 'revoked') AS offline, n.protocol < $3::int8 AS too_old, count(*) AS nodes FROM nodes n
WHERE n.removed_at IS NULL AND ($1::text IS NULL OR n.id = $1::text::uuid)
    AND ($2::text[] IS NULL OR n.group_id = ANY($2::text[]::uuid[]))
GROUP BY n.state IN ('offline', 'revoked'), n.protocol < $3::int8;

-- Names of nodes of a watch, as count_nodes takes it; of those that are offline or revoked ($4) or not, too old ($5) or not; but
-- for some ($6).
-- name: names
SELECT n.name FROM nodes n
WHERE n.removed_at IS NULL AND ($1::text IS NULL OR n.id = $1::text::uuid)
    AND ($2::text[] IS NULL OR n.group_id = ANY($2::text[]::uuid[]))
    AND (n.state IN ('offline', 'revoked')) = $4::bool AND (n.protocol < $3::int8) = $5::bool AND NOT (n.id = ANY($6::text[]::uuid[]))
ORDER BY n.name LIMIT $7;

-- Add a watch.
-- name: begin
INSERT INTO watches (id, viewer, operator, node_id, group_ids, question, rate, made_at, expires_at)
VALUES ($1::text::uuid, $2, $3, $4::text::uuid, $5, $6, $7, $8, $9);

-- Delete watches.
-- name: end
DELETE FROM watches WHERE id = ANY($1::text[]::uuid[]);

-- Renew watches, and tell their rates: ids and rates, and until when.
-- name: renew
UPDATE watches AS w SET expires_at = $3, rate = k.rate
FROM unnest($1::text[]::uuid[], $2::text[]::float8[]) AS k (id, rate) WHERE w.id = k.id;

-- The rates of watches.
-- name: rates
SELECT id::text AS id, rate FROM watches WHERE id = ANY($1::text[]::uuid[]);

-- Delete watches that ended before a time: their replicas died.
-- name: forget
DELETE FROM watches WHERE expires_at < $1;

-- The replicas that have written their marks since a time.
-- name: replicas
SELECT name FROM leases WHERE name LIKE 'mark %' AND expires_at > $1;

-- Send records to the replicas that have their viewers.
-- name: send
INSERT INTO watched_records (viewer, sender, seq, sent_at, body)
SELECT k.viewer, $2, k.seq, $5, k.body
FROM unnest($1::text[], $3::text[]::int8[], $4::bytea[]) AS k (viewer, seq, body);

-- The records that a viewer's replica ($1) hasn't read: the last number that it has of each sender.
-- name: receive
SELECT r.sender, r.seq, r.body
FROM unnest($2::text[], $3::text[]::int8[]) AS k (sender, last)
    JOIN watched_records r ON r.viewer = $1 AND r.sender = k.sender AND r.seq > k.last
ORDER BY r.sender, r.seq LIMIT $4;

-- Delete some of the records that were sent before a time; returns how many by its tag.
-- name: clean
DELETE FROM watched_records WHERE (viewer, sender, seq) IN (
    SELECT viewer, sender, seq FROM watched_records WHERE sent_at < $1 LIMIT $2
);
