"""The program `skerry-edge`: one module for each command, or for a few that belong together.

May import everything. Start with `main`; `run` is the node itself, `node` has the commands about a node, `call` runs a
module once, `dev` is what `skerry dev` drives.
"""
