"""The control plane: nodes, functions, schema changes, releases, and what brings nodes to their target."""
