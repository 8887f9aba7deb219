"""What the API does: a module for each resource, and the poll. It knows requests and replies, but no server.

May import: `sync`, `storage` and the modules at the top of `control`. Start with `operations` (from a request to a
typed call) and a resource such as `functions`; then `auth` (who asks), `services` (what operations work with) and
`poll`.
"""
