-- Codes that `skerry console` prints, each good for one sign-in within minutes. signed_in_at, stays: of the session in
-- which the code was asked for, whose age the new session has; NULL where it was asked for by a token.
CREATE TABLE IF NOT EXISTS sign_in_codes (
    code_hash TEXT PRIMARY KEY,
    operator_id UUID NOT NULL REFERENCES operators (id),
    made_at TIMESTAMPTZ NOT NULL,
    signed_in_at TIMESTAMPTZ,
    stays BOOL NOT NULL,
    used_at TIMESTAMPTZ
);

-- What `skerry login` waits for: that somebody who is signed in types its code at the console and allows it, or not.
CREATE TABLE IF NOT EXISTS logins (
    id UUID PRIMARY KEY,
    secret_hash TEXT NOT NULL,
    code TEXT NOT NULL,
    machine TEXT NOT NULL,
    address TEXT NOT NULL,
    made_at TIMESTAMPTZ NOT NULL,
    answered_at TIMESTAMPTZ,
    operator_id UUID REFERENCES operators (id),
    signed_in_by TEXT,
    signed_in_at TIMESTAMPTZ,
    stays BOOL,
    given_at TIMESTAMPTZ
);

CREATE INDEX IF NOT EXISTS logins_by_code ON logins (code);

-- issuer, subject: whom an OpenID provider calls so; NULL for an operator with a token. shown_name: as it calls them now.
ALTER TABLE operators ADD COLUMN IF NOT EXISTS issuer TEXT;

ALTER TABLE operators ADD COLUMN IF NOT EXISTS subject TEXT;

ALTER TABLE operators ADD COLUMN IF NOT EXISTS shown_name TEXT NOT NULL DEFAULT '';

CREATE UNIQUE INDEX IF NOT EXISTS operators_by_subject ON operators (issuer, subject);
