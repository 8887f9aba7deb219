"""Who may do what: tokens of operators and nodes, people who sign in, and the record of those that are refused.

Start reading at `auth`, which says whose a token is, then `rights` (what an operator may) and `sessions` (who has
signed in). People sign in by `sign_ins` (codes), or by `openid_provider` and `openid_people`.
"""
