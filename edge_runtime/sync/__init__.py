"""The node's side of its control plane: it joins, polls, syncs to the target and reports.

May import `telemetry`, `ipc` and the modules at the top of `edge_runtime`; what it needs of the rest of the node is
given to it (the protocols in `attempt`). Start with `agent` (the loop), then `attempt` (one sync), `retries` and
`plan_check` (decisions without I/O). `watch_answers` sends records to operators who watch the node.
"""
