UPDATE _skerry_steps SET "after" = +CAST(? AS INTEGER), start = +CAST(? AS INTEGER), bound = +CAST(? AS INTEGER)
WHERE number = ? AND step = ? AND bound IS NULL
