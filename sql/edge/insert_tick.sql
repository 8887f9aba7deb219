INSERT INTO _skerry_ticks (function, cron, tick, state, at)
VALUES (?1, ?2, +CAST(?3 AS INTEGER), ?4, +CAST(?3 AS INTEGER))
ON CONFLICT (function, cron, tick) DO UPDATE SET state = excluded.state, at = excluded.at
