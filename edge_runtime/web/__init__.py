"""The node's local HTTP: bytes become requests, and outcomes become answers.

May import `dispatch`, `telemetry`, `ipc` and the modules at the top of `edge_runtime`. Start with `connection`, then
`app`; `parser` reads requests, `callers` says who may call what, `routes` which function has a path. With a
certificate, `tls_stream` is between socket and connection. `server` ties these together.
"""
