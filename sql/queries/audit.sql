-- The audit log and the seals over its rows.

-- Record a change: who made it, in what call, and the values that it changed.
-- name: record
INSERT INTO audit (id, at, actor_kind, operator, address, call_id, action, subject, details, values_before, values_after)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- Rows, newest first, before a time and id ($4, $5), and since a time ($6); of a target ($1), of an actor ($2) and with
-- an action ($3), if given.
-- name: newest
SELECT id::text AS id, at, actor_kind, operator AS actor, address, call_id, action, subject AS target,
    values_before AS before, values_after AS after, details, NULLIF(seal, 0) AS seal
FROM audit
WHERE ($1::text IS NULL OR subject = $1) AND ($2::text IS NULL OR operator = $2) AND ($3::text IS NULL OR action = $3)
    AND (at, id) < ($4, $5::uuid) AND at >= $6
ORDER BY at DESC, audit.id DESC LIMIT $7;

-- The same, of a target.
-- name: newest_of_target
SELECT id::text AS id, at, actor_kind, operator AS actor, address, call_id, action, subject AS target,
    values_before AS before, values_after AS after, details, NULLIF(seal, 0) AS seal
FROM audit
WHERE subject = $1 AND ($2::text IS NULL OR operator = $2) AND ($3::text IS NULL OR action = $3)
    AND (at, id) < ($4, $5::uuid) AND at >= $6
ORDER BY at DESC, audit.id DESC LIMIT $7;

-- The same, of an actor.
-- name: newest_of_actor
SELECT id::text AS id, at, actor_kind, operator AS actor, address, call_id, action, subject AS target,
    values_before AS before, values_after AS after, details, NULLIF(seal, 0) AS seal
FROM audit
WHERE ($1::text IS NULL OR subject = $1) AND operator = $2 AND ($3::text IS NULL OR action = $3)
    AND (at, id) < ($4, $5::uuid) AND at >= $6
ORDER BY at DESC, audit.id DESC LIMIT $7;

-- The same, with an action.
-- name: newest_with_action
SELECT id::text AS id, at, actor_kind, operator AS actor, address, call_id, action, subject AS target,
    values_before AS before, values_after AS after, details, NULLIF(seal, 0) AS seal
FROM audit
WHERE ($1::text IS NULL OR subject = $1) AND ($2::text IS NULL OR operator = $2) AND action = $3
    AND (at, id) < ($4, $5::uuid) AND at >= $6
ORDER BY at DESC, audit.id DESC LIMIT $7;

-- Rows that have a seal, by seal, time and id, after these; also a seal below 0, which control never gives.
-- name: sealed
SELECT id::text AS id, at, actor_kind, operator AS actor, address, call_id, action, subject AS target,
    values_before AS before, values_after AS after, details, seal
FROM audit WHERE seal <> 0 AND (seal, at, id) > ($1, $2, $3::uuid) ORDER BY audit.seal, audit.at, audit.id LIMIT $4;

-- Seals by number, after a number.
-- name: seals
SELECT number, previous, hash, rows_hash, count, first_at, last_at, sealed_at, cut_at FROM audit_seals
WHERE number > $1 ORDER BY number LIMIT $2;

-- Rows that have no seal, oldest first.
-- name: unsealed
SELECT id::text AS id FROM audit WHERE seal = 0 ORDER BY at, audit.id LIMIT $1;

-- Those of these rows that have no seal, by time and id.
-- name: to_seal
SELECT id::text AS id, at, actor_kind, operator AS actor, address, call_id, action, subject AS target,
    values_before AS before, values_after AS after, details, NULLIF(seal, 0) AS seal
FROM audit WHERE id = ANY($1::text[]::uuid[]) AND audit.seal = 0 ORDER BY at, audit.id;

-- The newest seal.
-- name: newest_seal
SELECT number, previous, hash, rows_hash, count, first_at, last_at, sealed_at, cut_at FROM audit_seals
ORDER BY number DESC LIMIT 1;

-- Add a seal.
-- name: add_seal
INSERT INTO audit_seals (number, previous, hash, rows_hash, count, first_at, last_at, sealed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- Put rows under a seal.
-- name: put_under
UPDATE audit SET seal = $2 WHERE id = ANY($1::text[]::uuid[]) AND seal = 0;

-- The number of the oldest seal whose rows are there, if all of these are older than a time.
-- name: oldest_seal
SELECT s.number FROM audit_seals AS s WHERE s.last_at < $1
    AND s.number = (SELECT min(t.number) FROM audit_seals AS t WHERE t.cut_at IS NULL);

-- Delete the rows under a seal.
-- name: cut_rows
DELETE FROM audit WHERE seal = $1;

-- Record when the rows under a seal were deleted.
-- name: cut
UPDATE audit_seals SET cut_at = $2 WHERE number = $1;

-- Delete the seals before a number.
-- name: forget_seals
DELETE FROM audit_seals WHERE number < $1;

-- Refused authentications, newest first, before a minute, address and reason.
-- name: auth_failures
SELECT minute, address, reason, count, first_at, last_at FROM auth_failures
WHERE $1::timestamptz IS NULL OR (minute, address, reason) < ($1, $2, $3)
ORDER BY minute DESC, address DESC, reason DESC LIMIT $4;
