SELECT name, version, sha256, manifest, manifest_digest FROM _skerry_functions ORDER BY name
