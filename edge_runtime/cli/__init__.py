"""The program `skerry-edge`: one module for each command, and `support` with what they share.

May import everything. Start with `main`; `run` is the node itself, `dev` is what `skerry dev` drives.
"""
