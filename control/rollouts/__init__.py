"""How a release goes out: rehearsed on nodes' own data, then in steps that stop by themselves.

`policy` is what an operator writes, `rules` decides from it without I/O, `gates` judges what was measured, and `runner`
carries the decisions out, on whichever replica has the lease.
"""
