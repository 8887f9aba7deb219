"""The write-ahead log of the libsql file: it is moved and recovered, and the file kept open for others, without libsql.
`current_sqlite` opens the file for that by a current SQLite, which never has the schema parsed."""
