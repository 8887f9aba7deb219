"""HTTP that functions ask for. May import dispatch, ipc. Start with in_flight."""
