"""What a node keeps about its calls and its own log: records, and the ring of files that contains them.

`records` makes lines, `ring` writes them to the disk in its own thread, `search` finds them again. All of it runs in
the front, and `search` also in the commands that read a node's log.
"""
