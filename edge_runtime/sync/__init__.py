"""Control's side of the node: polls, syncs, reports. May import ipc. Start with agent."""
