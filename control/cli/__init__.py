"""The command `skerry`, with one verb in each module.

May import everything of control. Verbs of more than one module have folders: `project` (an author's project: `dev`,
`test`, `function new` and `build`), `up`, `live` (`logs`, `calls`) and `doctor`. What the verbs share is in `support`,
and what `skerry-edge` has, too, in `control.protocol`. Start with `main`: the table of verbs, and what becomes of
errors.
"""
