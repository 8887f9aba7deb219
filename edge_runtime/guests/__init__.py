"""A function: its ABI, its host functions, its code. May import wasmedge, ipc. Start with guest."""
