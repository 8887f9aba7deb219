"""Which parts of the edge runtime run as machine code that `just compile` built, and which as Python, and why.

With nothing built, all of it runs as Python, with the same behavior. Build output is in folders here that git ignores,
each with a stamp of the sources that it was built from. `compiled_modules` makes Python import the front's modules from
there.
"""
