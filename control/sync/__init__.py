"""The sync manager of the requirement: what each node should run, and how it gets there. It knows no HTTP.

May import: `storage` and the modules at the top of `control`. Start with `reconciler` (what a polling node must do) and
`plan` (the rules), then `write_batches` (how decisions are written), `fleet_cache` (why most polls need no database)
and `monitor` (what happens by the clock).
"""
