"""Programs that run once, without a node, behind the fence: the check of a module or of a schema change, a single call
of a module, calls on new databases, and work on a node's libsql file for commands (SQL, copies, reports).

Control's checks and the command lines start them as child processes, because their input is hostile. May import
`children`, `guests`, `sql`, `sandbox`, `wasmedge`, `ipc`, `aot_cache`, `errors`, `control.protocol`, `web.routes` and
`egress.grants`. Start with `check`, `single_call` and `fresh_calls`, which are programs. `check_schema` tries a schema
change on generated rows (`sample_rows`), and reports what it can lose (`change_effects`) and how it can be reversed
(`reversal`).
"""
