-- Of a line's rows, 32 before this tick and 32 after it stay: after it are those of a clock that was ahead, or of the
-- time before the clock was set back.
DELETE FROM _skerry_ticks
WHERE function = ?1 AND cron = ?2 AND state <> 'due' AND (
    tick < (
        SELECT tick FROM _skerry_ticks
        WHERE function = ?1 AND cron = ?2 AND tick < +CAST(?3 AS INTEGER) ORDER BY tick DESC LIMIT 1 OFFSET 31
    ) OR tick > (
        SELECT tick FROM _skerry_ticks
        WHERE function = ?1 AND cron = ?2 AND tick > +CAST(?3 AS INTEGER) ORDER BY tick LIMIT 1 OFFSET 31
    )
)
