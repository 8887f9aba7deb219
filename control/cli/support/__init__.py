"""What the commands of `skerry` share: the client of control's API, options, lists, output, releases.

May import everything in control except the commands themselves. Start with `client`.
"""
