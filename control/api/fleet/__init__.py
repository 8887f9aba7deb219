"""What operators and Prometheus see of the whole fleet: how many nodes stand how, calls by group and function, records.

May import what `control/api` may. Start with `overview` (`GET /v1/fleet`); `logs` shows records of nodes as they come;
`scrape` answers `GET /metrics`.
"""
