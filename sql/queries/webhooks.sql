-- Webhooks: the URLs that events are sent to, the messages that are made of events, and how each was delivered.

-- Add a webhook.
-- name: add
INSERT INTO webhooks (id, name, url, secret, kinds, created_by, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7);

-- Whether there is a webhook with a name.
-- name: taken
SELECT EXISTS (SELECT 1 FROM webhooks WHERE name = $1);

-- How many webhooks there are.
-- name: number
SELECT count(*) AS number FROM webhooks;

-- Delete events that no message was made of.
-- name: forget_events
DELETE FROM events WHERE id IN (SELECT e.id FROM events AS e LIMIT 10000);

-- A webhook by its name.
-- name: named
SELECT id::text AS id, name, url, secret, kinds, created_by, created_at, ended_at FROM webhooks WHERE name = $1;

-- Remove a webhook with its deliveries.
-- name: remove
DELETE FROM webhooks WHERE id = $1::text::uuid;

-- Webhooks after a name, with how many of their messages wait, and how many were given up.
-- name: webhooks
SELECT w.name, w.url, w.kinds, w.created_by, w.created_at, w.ended_at,
    (SELECT count(*) FROM webhook_deliveries AS d WHERE d.webhook_id = w.id AND d.state = 'waiting') AS waiting,
    (SELECT count(*) FROM webhook_deliveries AS d WHERE d.webhook_id = w.id AND d.state = 'given_up') AS given_up
FROM webhooks AS w WHERE w.name > $1 ORDER BY w.name LIMIT $2;

-- All webhooks, for the replica that sends.
-- name: all_webhooks
SELECT id::text AS id, name, url, secret, kinds, ended_at IS NOT NULL AS ended FROM webhooks;

-- The oldest events of some kinds, without their items.
-- name: recorded
SELECT id::text AS id, at, kind, count AS times FROM events WHERE kind = ANY($1::text[]) ORDER BY at, events.id LIMIT $2;

-- The items of events.
-- name: items
SELECT id::text AS id, items FROM events WHERE id = ANY($1::text[]::uuid[]);

-- Delete events that a message is made of; returns those that were there.
-- name: take_events
DELETE FROM events WHERE id = ANY($1::text[]::uuid[]) RETURNING id::text AS id;

-- The names of nodes, and their groups.
-- name: node_names
SELECT n.id::text AS id, n.name, g.name AS group_name FROM nodes AS n JOIN groups AS g ON g.id = n.group_id
WHERE n.id = ANY($1::text[]::uuid[]);

-- The numbers of releases, and their groups.
-- name: release_numbers
SELECT r.id::text AS id, r.number, g.name AS group_name FROM releases AS r JOIN groups AS g ON g.id = r.group_id
WHERE r.id = ANY($1::text[]::uuid[]);

-- Have a message wait for its delivery to a webhook, if that is still there; or record that it was given up.
-- name: deliver
INSERT INTO webhook_deliveries (webhook_id, id, kind, count, body, created_at, state, next_at, ended_at, error)
SELECT w.id, $2::text::uuid, $3::text, $4::int8, $5::text, $6::timestamptz, $7::text, $6::timestamptz, $8::timestamptz,
    $9::text
FROM webhooks AS w WHERE w.id = $1::text::uuid;

-- How many messages of each webhook wait.
-- name: waiting
SELECT webhook_id::text AS id, count(*) AS messages FROM webhook_deliveries WHERE state = 'waiting' GROUP BY webhook_id;

-- The webhooks with messages that are due.
-- name: due
SELECT DISTINCT webhook_id::text AS id FROM webhook_deliveries WHERE state = 'waiting' AND next_at <= $1;

-- The message of a webhook that has been due for the longest time.
-- name: next_due
SELECT id::text AS id, body, created_at, attempts FROM webhook_deliveries
WHERE webhook_id = $1::text::uuid AND state = 'waiting' AND next_at <= $2 ORDER BY next_at, id LIMIT 1;

-- Record how an attempt at a waiting message ended.
-- name: attempted
UPDATE webhook_deliveries SET state = $4, attempts = $3 + 1, next_at = $5, ended_at = $6, status = $7, error = $8
WHERE webhook_id = $1::text::uuid AND id = $2::text::uuid AND state = 'waiting' AND attempts = $3;

-- Make all messages due that wait for a webhook.
-- name: hurry
UPDATE webhook_deliveries SET next_at = $2 WHERE webhook_id = $1::text::uuid AND state = 'waiting' AND next_at > $2;

-- End a webhook, whose receiver wants no more messages; returns its name if it hadn't ended.
-- name: end_webhook
UPDATE webhooks SET ended_at = $2 WHERE id = $1::text::uuid AND ended_at IS NULL RETURNING name;

-- Give up the messages that wait for a webhook.
-- name: give_up
UPDATE webhook_deliveries SET state = 'given_up', ended_at = $2, error = $3
WHERE webhook_id = $1::text::uuid AND state = 'waiting';

-- Deliveries, newest first, before a time, an id and a webhook; to a webhook ($4) and in a state ($5), if given.
-- name: deliveries
SELECT d.webhook_id::text AS webhook_id, w.name AS webhook, d.id::text AS id, d.kind, d.count AS times, d.created_at, d.state,
    d.attempts, d.next_at, d.ended_at, d.status, d.error
FROM webhook_deliveries AS d JOIN webhooks AS w ON w.id = d.webhook_id
WHERE (d.created_at, d.id, d.webhook_id) < ($1, $2::text::uuid, $3::text::uuid)
    AND ($4::text IS NULL OR w.name = $4) AND ($5::text IS NULL OR d.state = $5)
ORDER BY d.created_at DESC, d.id DESC, d.webhook_id DESC LIMIT $6;

-- Delete deliveries that ended long ago.
-- name: old_deliveries
DELETE FROM webhook_deliveries WHERE (webhook_id, id) IN (
    SELECT d.webhook_id, d.id FROM webhook_deliveries AS d WHERE d.state <> 'waiting' AND d.created_at < $1 LIMIT $2
);
