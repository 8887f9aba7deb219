-- Changes no row where the tick has ended already.
INSERT INTO _skerry_ticks (function, cron, tick, state, at)
VALUES (?, ?, +CAST(? AS INTEGER), ?, +CAST(? AS INTEGER))
ON CONFLICT (function, cron, tick) DO UPDATE SET state = excluded.state, at = excluded.at WHERE state = 'due'
