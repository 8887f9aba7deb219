"""Functions that start by themselves: which ticks of their schedules are due (`tick_rules`), and the calls that these
make (`scheduler`, where to start reading)."""
