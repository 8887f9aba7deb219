"""Who may do what: the tokens of operators, joining nodes and nodes, and the record of those that are refused.

Start reading at `auth`, which says whom a request is from.
"""
