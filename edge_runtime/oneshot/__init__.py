"""Programs that run once, without a node, behind the fence: the check of a module or of a schema change, a single call
of a module, and calls each on a new database.

Control's upload check and the CLI start them as child processes, because their input is hostile. May import `children`,
`guests`, `sql`, `sandbox`, `wasmedge`, `ipc`, `aot_cache`, `errors`, `control.protocol`, and of `web` the routes.
Start with `check`, `single_call` and `fresh_calls`, each a program; the other modules are their parts.
"""
