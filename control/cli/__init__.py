"""The command `skerry`, with one verb in each module.

May import everything in control. Verbs with more than one module have folders: `project` (an author's project: `dev`,
`test`, `function new` and `build`), `up` and `doctor`. What the verbs share is in `support`, and what they share with
`skerry-edge` in `control.protocol`. Start with `main`: the table of verbs, and the handling of errors.
"""
