"""Programs that run once, without a node, behind the fence: the check of a module or of a schema change, and a single
call of a module.

Control's upload check and the CLI start them as child processes, because their input is hostile. May import `children`,
`guests`, `sql`, `sandbox`, `wasmedge`, `ipc`, `aot_cache`, `errors`, `control.wire` and `control.manifest_fields`.
Start with `check` and `single_call`, each a program; the other modules are their parts.
"""
