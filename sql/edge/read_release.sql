SELECT release_id, number, generation FROM _skerry_release
