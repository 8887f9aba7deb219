"""Which call goes to which worker, and how it ends.

May import `telemetry`, `ipc` and the modules at the top of `edge_runtime` (settings, logs, errors …), nothing that
opens libsql or WasmEdge. Start with `pool`, which decides, then `worker_link`, which acts: a `Call` flows in, an
`Outcome` (`Answer` or `Refusal`) out. `supervisor` keeps the workers alive, `time_watchdog` and `resource_watchdog`
kill those that exceed a limit.
"""
