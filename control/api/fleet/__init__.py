"""What operators and Prometheus see of the whole fleet: how many nodes stand how, and calls by group and function.

May import what `control/api` may. Start with `overview` (`GET /v1/fleet`); `scrape` answers `GET /metrics`.
"""
