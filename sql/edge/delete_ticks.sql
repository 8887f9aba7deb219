DELETE FROM _skerry_ticks WHERE function = ? AND cron = ?
