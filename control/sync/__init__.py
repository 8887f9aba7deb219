"""The sync manager: what each node should run, and how it gets there. May import storage. Start with reconciler."""
