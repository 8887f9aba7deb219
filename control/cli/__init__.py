"""The command `skerry`, with one verb in each module.

May import everything of control. What the verbs share is in `control.cli.support`. Start with `main`: the table of
verbs, and what becomes of errors.
"""
