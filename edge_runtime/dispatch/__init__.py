"""Which call goes to which worker, and how it ends. May import ipc. Start with pool."""
