SELECT function, cron, tick, state, at FROM _skerry_ticks ORDER BY function, cron, tick
