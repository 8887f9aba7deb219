SELECT type, name, digest FROM _skerry_schema
