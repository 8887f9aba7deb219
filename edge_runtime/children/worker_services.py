"""What a worker offers a call besides SQL: HTTP, which the front makes; and it counts what calls were denied."""

import socket
from collections.abc import Callable
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

from edge_runtime.guests import http_json
from edge_runtime.ipc import call_times, frames, http_messages
from edge_runtime.ipc.call_times import StepClock
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.ipc.http_messages import NotFetched
from edge_runtime.sql.call_sql import CallSql

KINDS: Final = {"not_granted": "sql", "sql_not_allowed": "sql_statement", "sql_closed": "sql_closed"}
"""The kind by which a denied use of the database is counted, by the code that the guest gets."""


class FrontHttp:
    """HTTP of one call: the front makes the request, and the worker waits."""

    def __init__(
        self,
        sock: socket.socket,
        reader: FrameReader,
        request: int,
        sending: Callable[[], None] | None = None,
        steps: StepClock | None = None,
    ) -> None:
        """`sending` is called before a request that can't be sent twice; what it raises ends the call. `steps` notes
        how long each request takes."""
        self._steps = steps or StepClock()
        self._sending = sending
        self._sock = sock
        self._reader = reader
        self._request = request

    def fetch(self, request: bytes) -> bytes:
        """Make a request; return the answer, or the error, as the guest gets it. Raises: ChildGone."""
        try:
            method, url, parcel = http_json.to_front(request)
        except NotFetched as error:
            return http_messages.refused(error.code, str(error))
        if self._sending is not None and method not in http_messages.REPEATABLE:
            self._sending()
        began = perf_counter()
        frames.send(self._sock, self._request, frames.HTTP, b"", parcel)
        answer = self._reader.answer(self._request, frames.HTTP_ANSWER)
        self._steps.add(call_times.HTTP, began, _host(url))
        return http_json.to_guest(answer)


def _host(url: str) -> str:
    """Return the host of a URL, and nothing else of it; empty where it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class Ungranted:
    """Stands in for a service that a manifest doesn't grant: each use is counted, and is an error for the guest."""

    def __init__(self, text: str) -> None:
        self.times = 0
        self._answer = http_messages.refused("not_granted", f"This function's manifest grants it no {text}.")

    def execute(self, request: bytes) -> bytes:
        self.times += 1
        return self._answer

    fetch = execute


class Denials:
    """Counts what a worker's calls are denied by their grants; the front is told with each call.

    The front itself counts what it denies: HTTP that a grant doesn't cover.
    """

    def __init__(self) -> None:
        self.sql = Ungranted("SQL: set `sql` to read or write")
        self.http = Ungranted("HTTP: set `http`, with the hosts")

    @property
    def any(self) -> bool:
        """Whether the call used a service that its manifest doesn't grant at all."""
        return self.sql.times > 0 or self.http.times > 0

    def take(self, sql: CallSql | None) -> bytes:
        """Return what the call that has ended was denied, as in `frames.DENIED`, and forget it; empty if nothing
        was."""
        kinds: dict[str, int] = {}
        if sql is not None and sql.denied:
            for code, times in sql.denied.items():
                kinds[KINDS[code]] = times
        if self.sql.times:
            kinds["sql"], self.sql.times = self.sql.times, 0
        if self.http.times:
            kinds["http_host"], self.http.times = self.http.times, 0
        return frames.encode_json(kinds) if kinds else b""
