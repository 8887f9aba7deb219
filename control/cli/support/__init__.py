"""What the commands of `skerry` share: the client of control's API, output, function projects, compilers.

May import everything of control but the commands themselves (`example` alone uses those of `skerry function`). Start
with `client`.
"""
