"""The whole fleet in one process, under one clock and one seed: replicas of control, nodes, operators and faults.

The program's own code runs here: control's application with its sync manager, and each node's agent with its outbox.
What stands in for the rest: an event loop whose time is a number (`loop`), processes that can be killed at any step
(`processes`), a network that loses, doubles and delays messages (`network`), a metadata database in memory that
answers the program's own SQL statements (`tables`, `statements`, `database`), and a node's disk and release (`node`).
`world` puts them together, `operators` and `troubles` draw what happens from the seed, and `ledger` checks the
properties. `runs.run(seed)` is the way in.

A seed repeats a run exactly: nothing in a run reads a real clock, real randomness or the order of a hash. That the
database in memory does what PostgreSQL does is shown by `postgres`, which gives every statement to both.
"""
