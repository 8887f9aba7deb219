"""Which release the node runs, and how it changes to another.

May import `dispatch`, `ipc` and the modules at the top of `edge_runtime`. Start with `manager` (from a plan to serving
it); `compiler` finds or makes the functions' machine code, `witness` knows what the libsql file must say,
`checkpoint_schedule` keeps its write-ahead log short.
"""
