"""What the benchmarks share: load, servers as processes, CPU time and memory."""
