"""The sync manager: what each node should run, and how it gets there. It doesn't know HTTP.

May import: `storage` and the modules at the top of `control`. A poll passes through `fleet_cache` (is the node at its
target, from memory), `write_batches` (many nodes in one transaction), `reconciler` (what each of them must do, by the
rules in `plan`; rows are read and written in `node_state`), and later `reports`. `monitor` does periodic work,
`change_effects` finds what a schema change can lose and block, `compatibility` which nodes can't run a release.
"""
