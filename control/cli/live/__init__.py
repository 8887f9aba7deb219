"""The verbs that show nodes' records as they come: `logs` has the commands, `record_stream` reads on over the end of a
replica.
"""
