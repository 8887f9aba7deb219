"""What a guest must look like, and how requests and responses pass to and from it. Pure: no I/O, no WasmEdge.

`detect` says which ABI a module speaks, or why no node can run it (with `binary`, which reads the
module's bytes, and `imports`). `wagi` and `direct` translate requests and responses; `extism` and `merge` are for
Extism plug-ins. May import `guests.invocation`, `ipc`, `code_section` and `errors`. Start with `detect`.
"""
