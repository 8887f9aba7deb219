"""The worker's loop for plain calls as a C library, built by `just compile`; without it Python does the same.

It knows nothing of the rest of the program: its caller hands in WasmEdge's functions and a worker's memory.
"""
