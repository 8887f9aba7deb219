"""The edge runtime: serves WASM functions over local HTTP on a libsql database, and syncs with control.

A node is one front process (`front`, with the folders `web`, `dispatch`, `egress`, `release` and `sync`), which parses
what strangers send and never runs their code, and child processes (`children`), which do (`guests`, `wasmedge`, `sql`)
behind a fence (`sandbox`). Both sides talk through `ipc`. The front therefore imports nothing that opens WasmEdge or
libsql. From `control` the edge imports only `control.protocol`. All may import the modules at the top, except `front`,
`status` and `metrics`, which put the front together. `built` finds compiled modules. Start with `front`.
"""

from edge_runtime.built import compiled_modules

# Before any module that may be compiled is imported.
compiled_modules.install()
