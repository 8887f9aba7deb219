"""How long a connection of the local HTTP waits for what, in seconds.

None of them is `Final`: its value would be built into what is compiled, and tests wait for less, or for longer.
"""

HEAD_WAIT = 10.0
"""Seconds that a request's head may take to come, the first one counted from the connection's begin."""
KEEP_ALIVE = 75.0
"""Seconds that a connection may be idle between two requests."""
UNREAD_WAIT = 30.0
"""Seconds within which a client must read some of an answer that waits for it."""
IDLE = 1.0
"""Seconds without a request after which a connection may be ended because others need its place."""
MOVE_WAIT = 0.5
"""Seconds without a request after which a connection is ended because the node stops. The client of a newer one may be
about to send a request, whose answer then tells it to go on with another connection."""
FIRST_WAIT = 2.0
"""The same where none has come yet: the client is about to send one, maybe after its TLS handshake."""
LINGER = 2.0
"""Seconds that a connection, after its last answer, takes what the client still sends: closed at once it would be
reset, and the client might not see the answer."""
