-- What happened, as it waits until messages to webhooks are made of it.

-- Record what happened, if there is a webhook.
-- name: record
INSERT INTO events (id, at, kind, count, items)
SELECT $1::uuid, $2::timestamptz, $3::text, $4::int8, $5::jsonb WHERE EXISTS (SELECT 1 FROM webhooks);
