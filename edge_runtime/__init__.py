"""The edge runtime: serves WASM functions over local HTTP on a libsql database, and syncs with control."""
