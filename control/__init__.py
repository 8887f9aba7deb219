"""The control plane: it keeps functions, schema changes and releases, and brings each node to its group's release.

`web` turns HTTP into operations, `api` has one module per resource, `sync` decides what a node must do, `storage` reads
and writes the metadata database and the artifact store, `edge_check` runs the edge's checks of uploads, `local` starts
all of it on one machine, `cli` is the command `skerry`. Control imports nothing from `edge_runtime`; what both sides
share is in `control.protocol`.
Start with `control.web.app`.
"""
