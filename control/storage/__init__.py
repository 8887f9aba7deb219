"""Storage: the metadata database and the artifact store.

May import: the modules at the top of `control`. Start with `database` (transactions), then `queries` and `connection`
(SQL and the types of its rows), `object_store` and `bucket_owner` (artifacts). `access_journal` keeps a copy of access
changes outside the metadata, for a restore.
"""
