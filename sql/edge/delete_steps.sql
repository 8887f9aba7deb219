DELETE FROM _skerry_steps WHERE number = ?
