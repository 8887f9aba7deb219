"""A function as a guest: how its module is recognized, loaded and called.

`abi` decides what a module is and translates requests and responses (pure); the `run_…` modules make a call, one for
each ABI; a guest may call `wasi`, `host_functions` and `extism_host`. May import `wasmedge`, `ipc`, `process_memory`
and `errors`. The front never imports this package. Start with `guest` (what a worker uses), then `invocation` (a call's
request and response) and `host_functions`.
"""
