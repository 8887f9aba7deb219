"""HTTP requests that functions ask for, made by the front: workers have no network.

May import `dispatch`, `telemetry`, `ipc` and the modules at the top of `edge_runtime`. Start with `http_client` (a
request from the worker's frame to its answer, and which addresses names may resolve to), then `grants` (what a manifest
allows).
"""
