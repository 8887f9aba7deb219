SELECT count(*) FROM _skerry_steps WHERE stage = 'after' AND number IN (SELECT number FROM _skerry_changes)
