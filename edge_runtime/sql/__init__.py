"""libsql: the file, and what guests and schema changes may do with it. May import ipc. Start with call_sql."""
