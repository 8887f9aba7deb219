"""Runs without a node, behind the fence: is a module or schema change fit, one call. Start with check."""
