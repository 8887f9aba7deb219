-- nodes.state has one value more: `revoked`, while no credential of the node is good. Its rule goes, as it is called by
-- PostgreSQL and by CockroachDB.
ALTER TABLE nodes DROP CONSTRAINT IF EXISTS nodes_state_check;

ALTER TABLE nodes DROP CONSTRAINT IF EXISTS check_state;
