"""Local HTTP: bytes to requests, and answers back. May import dispatch, ipc. Start with connection."""
