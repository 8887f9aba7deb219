SELECT * FROM _skerry_meta
