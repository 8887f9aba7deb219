UPDATE _skerry_steps SET done = 1 WHERE number = ? AND step = ?
