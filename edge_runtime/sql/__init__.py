"""libsql: the node's database file, and what guests and schema changes may do with it.

May import `ipc`, `wal`, `errors` and `control` (`wire`, `faults`). Opened in children alone, after the fork; the front
never imports this package. Start with `call_sql` (the SQL of one call), then `session` (which statements are fit),
`access` (what they may touch) and `database` (the file); `schema_change` is the other user of the file.
"""
