-- Events, and the URLs that they are sent to.

-- A URL that events are sent to. The secret is kept as it is: each message is signed with it. kinds: those that are
-- sent; an empty list: all. ended_at: when the receiver said that it is gone for good.
CREATE TABLE IF NOT EXISTS webhooks (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name TEXT NOT NULL UNIQUE,
    url TEXT NOT NULL,
    secret TEXT NOT NULL,
    kinds JSONB NOT NULL DEFAULT '[]',
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ
);

-- What happened, written by the transaction in which it happened, until messages are made of it. count: how many things
-- happened, of which items has the first.
CREATE TABLE IF NOT EXISTS events (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    at TIMESTAMPTZ NOT NULL,
    kind TEXT NOT NULL,
    count INT8 NOT NULL,
    items JSONB NOT NULL
);

-- A message to a webhook. All webhooks that get a message get the same id and the same bytes.
CREATE TABLE IF NOT EXISTS webhook_deliveries (
    webhook_id UUID NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    count INT8 NOT NULL,
    body TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'given_up')),
    attempts INT8 NOT NULL DEFAULT 0,
    next_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    status INT8 NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (webhook_id, id)
);

CREATE INDEX IF NOT EXISTS webhook_deliveries_due ON webhook_deliveries (webhook_id, next_at) WHERE state = 'waiting';

CREATE INDEX IF NOT EXISTS webhook_deliveries_by_time ON webhook_deliveries (created_at, id, webhook_id);

-- When a release was run by all nodes of its group, and when no node was on its way to it any more and some had failed.
ALTER TABLE releases ADD COLUMN IF NOT EXISTS arrived_at TIMESTAMPTZ;

ALTER TABLE releases ADD COLUMN IF NOT EXISTS failed_at TIMESTAMPTZ;
