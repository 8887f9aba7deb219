"""Everything on one machine, for `skerry up` and the tests. Start with embedded."""
