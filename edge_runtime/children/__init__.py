"""The front's child processes: workers, and those that apply releases, compile and make checkpoints.

May import `guests`, `sql`, `sandbox`, `wasmedge`, `ipc` and the modules at the top of `edge_runtime`. Start with
`zygote`, which forks all others, then `worker`. `applier` (its work is in `release_transaction` and `apply_changes`),
`compile_child` and `checkpointer` are further kinds.
"""
