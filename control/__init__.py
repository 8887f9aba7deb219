"""The control plane: it keeps functions, schema changes and releases, and brings each node to its group's release.

`web` turns HTTP into operations, `api` has one module a resource, `sync` decides what a node is to do, `storage` reads
and writes the metadata database and the artifact store, `edge_check` runs the edge's checks of what is uploaded,
`local` starts all of it on one machine, `cli` is the command `skerry`. Control imports nothing of `edge_runtime`; the
two meet in `control.protocol`, which has what both sides share.
Start with `control.web.app`.
"""
