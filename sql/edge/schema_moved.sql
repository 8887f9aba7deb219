-- What workers know of the schema is forgotten when this count changes.
UPDATE _skerry_release SET applied = applied + 1
