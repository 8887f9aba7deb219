"""What the benchmarks share: load, processes, CPU time."""
