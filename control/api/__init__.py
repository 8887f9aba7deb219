"""The API: a module for each resource, and the poll. It knows requests and replies, but no server.

A module has the resource's bodies and answers, and its operations, each declared at its handler. May import: `access`,
`telemetry`, `sync`, `storage` and the modules at the top of `control`. Start with `operations` (from a request to a
typed call) and a resource such as `functions`; then `services` (what operations work with) and `poll`.
"""
