"""What the fleet's numbers are: how many nodes stand how, and what their functions' calls cost. It knows no HTTP.

May import: `storage`, `sync` and the modules at the top of `control`. Start with `fleet_summary` (how many nodes stand
how, which is read only while somebody looks) and `webhook_sender` (events, sent to URLs).
"""
