"""The sync manager of the requirement: what each node should run, and how it gets there. It knows no HTTP.

May import: `storage` and the modules at the top of `control`. The way of a poll is `fleet_cache` (is the node
at its target, from memory), `write_batches` (many nodes in one transaction), `reconciler` (what each of them must do,
by the rules in `plan`; rows are read and written in `node_state`), and later `reports`. `monitor` has what happens by
the clock, `change_effects` what a schema change can lose and hold up, `compatibility` which nodes can't run a release.
"""
