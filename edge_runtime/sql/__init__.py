"""libsql: the node's database file, and what guests and schema changes may do with it.

May import `ipc`, `wal`, `errors` and `control.protocol`. Only children open the file, after the fork; the front never
imports this package. Start with `call_sql` (the SQL of one call), then `session` (which statements may run), `access`
(what they may touch) and `database` (the file). Schema changes are the other use of the file: `schema_change` (their
text), `run_change`, and `schema` (what they lead to).
"""
