-- Who has signed in, in a browser or by `skerry login`. Only the sha256 of a session's secret is stored. A session ends
-- by its age, which settings say, with its operator, or where ended_at is set.
-- used_in: console or cli. signed_in_by: token, code or provider. stays: the browser keeps it when it is closed.
CREATE TABLE IF NOT EXISTS sessions (
    id UUID PRIMARY KEY,
    secret_hash TEXT NOT NULL,
    operator_id UUID NOT NULL REFERENCES operators (id),
    used_in TEXT NOT NULL,
    signed_in_by TEXT NOT NULL,
    stays BOOL NOT NULL,
    made_at TIMESTAMPTZ NOT NULL,
    last_used_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ
);

CREATE INDEX IF NOT EXISTS sessions_by_time ON sessions (made_at, id);
