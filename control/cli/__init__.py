"""The command `skerry`, with one verb in each module.

May import everything of control. What the verbs share is in `control.cli.support`, and what `skerry-edge` has, too, in
`control.protocol`. Start with `main`: the table of verbs, and what becomes of errors.
"""
