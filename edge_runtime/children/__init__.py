"""The processes that the front has. May import guests, sql, sandbox, wasmedge, ipc. Start with zygote."""
