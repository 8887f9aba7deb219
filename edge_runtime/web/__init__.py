"""The node's local HTTP: bytes become requests, and outcomes become answers.

May import `dispatch`, `ipc` and the modules at the top of `edge_runtime`. Start with `connection`; `parser` reads
requests, `app` says what is asked for and by whom, `callers` who may call what, `routes` which function has a path.
Where there is a certificate, `tls_stream` is between socket and connection. `server` holds all together.
"""
