-- Uploads that were given up, artifacts that nothing uses and those to be deleted are found without reading the others.
CREATE INDEX IF NOT EXISTS artifacts_by_state ON artifacts (state, state_since);
