"""HTTP requests that functions ask for, made by the front: workers have no network.

May import `dispatch`, `ipc` and the modules at the top of `edge_runtime`. Start with `in_flight` (one request from the
worker's frame to its answer), then `grants` (what a manifest allows) and `http_client` (where names may lead).
"""
