"""What the commands of `skerry` share: the client of control's API, options, lists, output, releases.

May import everything of control but the commands themselves. Start with `client`.
"""
