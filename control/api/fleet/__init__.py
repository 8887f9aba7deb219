"""The whole fleet: how many nodes stand how, calls by group and function, records, and what nodes are called.

May import what `control/api` may. Start with `overview` (`GET /v1/fleet`); `logs` shows records of nodes as they come;
`scrape` answers `GET /metrics`; `naming` renames and labels nodes, and ends groups.
"""
