DELETE FROM _skerry_meta WHERE false
