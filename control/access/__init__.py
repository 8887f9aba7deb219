"""Who may do what: tokens of operators and nodes, people who sign in, and the record of those that are refused.

Start reading at `auth`, which says whom a token is of, then `sessions`, which does so of whoever has signed in. They
sign in by `sign_ins` (codes), or by `provider` and `people` (at an OpenID provider).
"""
