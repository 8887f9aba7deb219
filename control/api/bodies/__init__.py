"""Bodies of the operators' API: requests in `requests`, answers in `responses`, `release_responses` and
`node_responses`.

Start with `requests`. Nodes' messages are `control.protocol.wire`.
"""
