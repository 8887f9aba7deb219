"""What nodes report: how many have each standing, their functions' calls, their records live; and events, sent to URLs.

It knows nothing about control's own HTTP. May import: `storage`, `sync` and the modules at the top of `control`. Start
with `fleet_summary` (how many nodes have each standing, read only while somebody looks), `ingest` (what nodes send with
polls) and `call_history` (where that is kept), `webhooks` (events), or `watching` (operators watch nodes' records).
"""
