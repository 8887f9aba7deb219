"""What all connections together may hold in memory (request bodies, and answers that clients leave unread), and how
much of it the process keeps once it is free."""

import logging
from typing import Final, Protocol

from edge_runtime import clock, process_memory

LARGEST: Final = 1024 * 1024
"""Bytes up to which freed blocks are kept. Bodies come in smaller pieces."""
TRIM_AFTER: Final = 16 * 1024 * 1024
"""Bytes of bodies that must have passed before free memory is returned to the system."""
LOOKS: Final = 30
"""Checks after which it is returned even if bodies keep passing."""
TOLD: Final = 10.0
"""Seconds between two log lines about answers that are given up."""

log = logging.getLogger("skerry.front")


class BodyMemory:
    """Counts the memory of all request bodies together, and has the limits for all and for one."""

    def __init__(self, limit: int, body_limit: int) -> None:
        self.limit = limit
        self.body_limit = body_limit
        self.held = 0
        """Bytes of the bodies that are being received, wait, or belong to running calls."""


class SlowConnection(Protocol):
    name: str
    """Name of the function whose answer is unread."""

    def abort(self) -> None:
        """End the connection at once."""


class UnreadAnswers:
    """How much of their answers clients leave unread, and which answer is given up when that is too much."""

    def __init__(self, limit: int) -> None:
        """`limit` is how many bytes may be unread. One function's answers may take half of that, so that those of
        others aren't given up for them."""
        self.bytes = 0
        """Unread bytes of all connections together."""
        self.of_function: dict[str, int] = {}
        self.of_connection: dict[SlowConnection, int] = {}
        """The longest unread answer comes first."""
        self.given_up = 0
        """Answers given up since startup."""
        self._limit = limit
        self._told = float("-inf")
        """When the log last reported an answer that was given up."""

    def note(self, connection: SlowConnection, count: int) -> None:
        """Note how many bytes of a connection's answer are unread. If one function, or all together, exceed the limit,
        close the connections with the longest unread answers."""
        name, more = connection.name, count - self.of_connection.get(connection, 0)
        self.bytes += more
        of = self.of_function.get(name, 0) + more
        if of:
            self.of_function[name] = of
        else:
            self.of_function.pop(name, None)
        if not count:
            self.of_connection.pop(connection, None)
            return
        self.of_connection[connection] = count
        while self.of_function.get(name, 0) > self._limit // 2:
            oldest = next(c for c in self.of_connection if c.name == name)
            if oldest is connection:
                break
            self._give_up(oldest)
        while self.bytes > self._limit:
            self._give_up(next(iter(self.of_connection)))

    def _give_up(self, connection: SlowConnection) -> None:
        self.given_up += 1
        now = clock.monotonic()
        if now - self._told >= TOLD:
            self._told = now
            text = "an answer of %s is given up, since clients leave %d MiB of answers unread; it is number %d so far"
            log.warning(text, connection.name or "the node", self.bytes >> 20, self.given_up)
        connection.abort()


class Allocator:
    """The process's allocator: memory of bodies is reused while bodies pass, and returned to the system afterwards.

    glibc keeps a freed block if one that is in use lies behind it: hundreds of MB after a crowd of clients.
    """

    def __init__(self) -> None:
        self.passed = 0
        """Bytes of request bodies and large answers that have passed since memory was last returned."""
        self._before = 0
        """The part of them that had passed at the last check."""
        self._looks = 0
        """Checks since memory was due to be returned, while bodies passed."""

    def keep(self) -> None:
        """Have the allocator keep free memory from now on, until `look` returns it."""
        process_memory.keep_freed(LARGEST)

    def look(self, *, held: bool) -> None:
        """Return free memory to the system if bodies have passed and no more do. Call it once a second; `held` says
        whether bodies are in memory, which will be freed as well."""
        if self.passed < TRIM_AFTER:
            return
        self._looks += 1
        if self.passed != self._before and self._looks < LOOKS:
            self._before = self.passed
            return
        self.passed = self._before = TRIM_AFTER if held else 0
        self._looks = 0
        process_memory.trim_heap()
