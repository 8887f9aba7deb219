SELECT number, revision, checksum FROM _skerry_changes ORDER BY number
