"""Which release the node runs, and how it changes to another.

May import `dispatch`, `ipc` and the modules at the top of `edge_runtime`. Start with `manager` (from a plan to serving
it); `applier_process` has the libsql file changed, `witness` knows what that file must say, `compiler` finds or
compiles the functions' machine code, `checkpoint_schedule` keeps the write-ahead log short.
"""
