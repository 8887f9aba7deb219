"""The edge runtime: serves WASM functions over local HTTP on a libsql database, and syncs with control.

A node is one front process (`front`, with the folders `web`, `dispatch`, `egress`, `release` and `sync`), which parses
what strangers send and never runs their code, and child processes (`children`), which do (`guests`, `wasmedge`, `sql`)
behind a fence (`sandbox`). Both sides talk by `ipc`. The front therefore imports nothing of what opens WasmEdge or
libsql. Of `control` the edge imports `wire` and `faults` alone. Modules at the top are free for all to import, but for
`front`, `status` and `metrics`, which put the front together. What is compiled is found by `built`. Start with `front`.
"""

from edge_runtime.built import compiled_modules

# Before any module that may be compiled is imported.
compiled_modules.install()
