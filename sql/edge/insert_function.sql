INSERT INTO _skerry_functions (name, version, sha256, manifest, manifest_digest) VALUES (?, ?, ?, ?, ?)
