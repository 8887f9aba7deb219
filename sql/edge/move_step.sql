UPDATE _skerry_steps SET "after" = +CAST(? AS INTEGER)
WHERE number = ? AND step = ? AND done = 0 AND "after" = +CAST(? AS INTEGER)
