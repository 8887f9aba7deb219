"""Which parts of the edge runtime run as machine code that `just compile` built, and which as Python, and why.

With nothing built all of it runs as Python, and does the same. What is built lies in folders here that git ignores,
each with a stamp of the sources that it was built from. `compiled_modules` has the front's modules taken from there.
"""
