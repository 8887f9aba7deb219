"""Backups of nodes' databases at the store: what they consist of, what is made of them, and what is kept.

May import: `control.storage`, `control.sync`. `objects` has the keys, and `chain` says which files lead to a state;
both are pure, as `retention` is. `builder` makes a database of them in a fenced child.
"""
