"""The HTTP server: bytes to operations and back.

May import: `console`, `api`, `access`, `sync`, `storage` and the modules at the top of `control`. Start with `app`
(what every request goes through) and `routes` (the operations, which their handlers declare); then `starlette_app`
(Starlette), `lifespan` (background tasks), `server` and `connection_limits` (connections).
"""
