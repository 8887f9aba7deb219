SELECT * FROM _skerry_release
