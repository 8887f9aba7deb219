"""What nodes tell of themselves: how many stand how, what their functions' calls cost, their records as they come; and
events, sent to URLs. It knows no HTTP of control's own.

May import: `storage`, `sync` and the modules at the top of `control`. Start with `fleet_summary` (how many nodes stand
how, which is read only while somebody looks), `ingest` (what nodes tell with their polls) and `call_history` (where
that is kept), `webhooks` (events), or `watching` (operators watch nodes' records).
"""
