"""What each pass of the monitor looks after, beside syncs that expired and old logs.

`liveness` has which nodes are online and which are overdue, `arrivals` which releases have arrived at all their nodes,
and `future_times` corrects times that a wrong clock has stored.
"""
