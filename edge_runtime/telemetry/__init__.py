"""What a node keeps of its calls and of its own log: records, and the ring of files that has them.

`records` makes lines, `ring` writes them to the disk in a thread of its own, `search` finds them again. All of it is in
the front; `search` also in the commands that read a node's log.
"""
