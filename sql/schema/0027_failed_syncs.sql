-- At which releases nodes have failed: a rollback goes to none of these.
CREATE INDEX IF NOT EXISTS syncs_failed ON syncs (release_id, node_id) WHERE status IN ('failed', 'expired');
