"""How much of their answers clients leave unread, and whose answer is given up when that is too much."""

import logging
from typing import Final, Protocol

from edge_runtime import clock

TOLD: Final = 10.0
"""Seconds between two log lines about answers that are given up."""

log = logging.getLogger("skerry.front")


class SlowConnection(Protocol):
    name: str
    """Name of the function whose answer is unread."""

    def abort(self) -> None:
        """End the connection at once."""


class UnreadAnswers:
    def __init__(self, limit: int) -> None:
        """`limit` is how many bytes may be unread. One function's answers may be half of that, so that others'
        aren't given up for them."""
        self.bytes = 0
        """Of all connections together."""
        self.of_function: dict[str, int] = {}
        self.of_connection: dict[SlowConnection, int] = {}
        """The longest unread answer comes first."""
        self.given_up = 0
        """Answers given up since the start."""
        self._limit = limit
        self._told = float("-inf")
        """When the log last told of an answer that was given up."""

    def note(self, connection: SlowConnection, count: int) -> None:
        """Note how many bytes of a connection's answer are unread. If they are too many for one function, or all
        together, the connections with the longest unread answers are ended."""
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
