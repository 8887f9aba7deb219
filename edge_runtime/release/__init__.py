"""What the node runs, and how that changes. May import dispatch, ipc. Start with manager."""
