-- The ticks of schedules: those that ended, since when a line counts, and a release's calls that are due. `cron` is empty
-- for the latter; `tick` and `at` (when the row was written) are Unix seconds.
CREATE TABLE IF NOT EXISTS _skerry_ticks (
    function TEXT NOT NULL,
    cron TEXT NOT NULL,
    tick INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('since', 'due', 'done', 'failed')),
    at INTEGER NOT NULL,
    PRIMARY KEY (function, cron, tick)
) STRICT, WITHOUT ROWID
