"""Backups of nodes' databases at the store: what they consist of, what is made of them, and what is kept.

May import: `control.access`, `control.storage`, `control.sync`, `control.telemetry`. `objects` has the keys, `chain`
says which files lead to a state; both are pure, as `retention` is. `builder` makes a database of them in a fenced
child, `targets` finds the state that somebody asks for, and `keeper` does what is to be done again and again: it merges
files (`merging`), sweeps them, and proves restores (`drills`).
"""
