"""A metadata database and an artifact store on this machine, for `skerry up` and the tests, and certificates for them.

Imports nothing of control but this package. Start with `embedded`.
"""
