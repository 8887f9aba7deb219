"""Who may do what: tokens of operators and nodes, people who sign in, and the record of refusals.

Start with `auth`, which finds out whose a token is, then `rights` (what an operator may do) and `sessions` (who is
signed in). People sign in through `sign_ins` (codes), or `openid_provider` and `openid_people`.
"""
