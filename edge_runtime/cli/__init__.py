"""`skerry-edge`, a verb a file. May import everything. Start with main."""
