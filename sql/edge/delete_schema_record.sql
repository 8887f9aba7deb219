DELETE FROM _skerry_schema
