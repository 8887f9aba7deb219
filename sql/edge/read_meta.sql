SELECT database_id, format FROM _skerry_meta
