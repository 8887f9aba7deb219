"""What a worker offers a call (SQL, and HTTP through the front), and what it tells the front when a call ends.

Calls that Python runs and those of the C loop (`plain_calls`) share both.
"""

import socket
from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from control.protocol.manifest import SqlGrant
from edge_runtime.children.function_cache import Entry
from edge_runtime.errors import status_of
from edge_runtime.guests import http_json
from edge_runtime.guests.guest import GuestFault
from edge_runtime.ipc import call_times, frames, http_messages
from edge_runtime.ipc.call_times import StepClock
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.ipc.http_messages import NotFetched
from edge_runtime.ipc.progress_page import Mark
from edge_runtime.sql.call_sql import CallSql, CommitFailed, DatabaseHeld, StaleRelease, WriteHeld
from edge_runtime.sql.session import Session
from edge_runtime.sql.ticks import Tick
from edge_runtime.sql.tokenizer import without_values

KINDS: Final = {"not_granted": "sql", "sql_not_allowed": "sql_statement", "sql_closed": "sql_closed"}
"""The kind under which a denied use of the database is counted, by the code that the guest gets."""
Unanswered = StaleRelease | CommitFailed | DatabaseHeld | GuestFault
UNANSWERED: Final = (StaleRelease, CommitFailed, DatabaseHeld, GuestFault)
"""The errors with which a call ends without an answer from its guest."""


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
        """Call `sending` before a request that can't be sent twice; what it raises ends the call.

        `steps` notes how long each request takes.
        """
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
    """Return only the host of a URL; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class Ungranted:
    """A stand-in for a service that a manifest doesn't grant: each use is counted, and is an error for the guest."""

    def __init__(self, text: str) -> None:
        self.times = 0
        self._answer = http_messages.refused("not_granted", f"This function's manifest grants it no {text}.")

    def execute(self, request: bytes) -> bytes:
        self.times += 1
        return self._answer

    fetch = execute


class Denials:
    """A count of what their grants deny a worker's calls; the front gets it with each call.

    The front itself counts what it denies: HTTP that a grant doesn't cover.
    """

    def __init__(self) -> None:
        self.sql = Ungranted("SQL: set `sql` to read or write")
        self.http = Ungranted("HTTP: set `http`, with the hosts")

    @property
    def any(self) -> bool:
        """Return whether the call used a service that its manifest doesn't grant at all."""
        return self.sql.times > 0 or self.http.times > 0

    def take(self, sql: CallSql | None) -> bytes:
        """Return what the finished call was denied, as in `frames.DENIED`, and forget it; empty if nothing was."""
        kinds: dict[str, int] = {}
        if sql is not None and sql.denied:
            for code, times in sql.denied.items():
                kinds[KINDS[code]] = times
        if self.sql.times:
            kinds["sql"], self.sql.times = self.sql.times, 0
        if self.http.times:
            kinds["http_host"], self.http.times = self.http.times, 0
        return frames.encode_json(kinds) if kinds else b""


class CallRights(NamedTuple):
    """Which function a call belongs to, and what the call may do in the database."""

    entry: Entry
    generation: int
    grant: SqlGrant
    read_only: str
    """The call's method, if that is why a function that may write only reads; else empty."""


FindRights = Callable[[int, int, str], CallRights]
"""Returns the rights for a function, by the serial of its set of modules and its index in it, and a method."""


@lru_cache(128)
def _shown(statement: str) -> str:
    """Return the part of a statement that may be shown."""
    return without_values(statement)[: call_times.TEXT]


class CallEnds:
    """Ends a worker's calls in turn: commits, and tells the front."""

    def __init__(self, sock: socket.socket, mark: Mark, session: Session) -> None:
        self._sock = sock
        self._mark = mark
        self._session = session
        self.denials = Denials()
        self.steps = call_times.StepClock()
        """The steps of the running call. The code that runs it clears them first."""

    def sql(self, rights: CallRights, tick: Tick | None = None) -> CallSql:
        """Return the database as the running call sees it; `tick` is as in `CallSql`."""
        entry, generation, grant, read_only = rights
        return CallSql(self._session, grant, generation, self._mark, entry.sql, read_only, self.steps, tick)

    @staticmethod
    def settle(sql: CallSql, status: int) -> None:
        """Commit what a call wrote, or undo it if its guest answered that it failed.

        Raises: CommitFailed, and for a tick's call also what `CallSql.commit` says.
        """
        if status < 500:
            sql.commit(done=status < 300)
        else:
            sql.rollback()

    def deny(self, request: int, sql: CallSql | None) -> None:
        """Tell the front what the call was denied, if anything."""
        denied = self.denials.take(sql)
        if denied:
            frames.send(self._sock, request, frames.DENIED, b"", denied)

    def times_if_slow(self, request: int, entry: Entry, status: int, *, asked: bool = False) -> bytes:
        """Return the frame that says where a call spent its time, if it was slow or failed, or the front `asked`.

        Otherwise return nothing.
        """
        ended, slowest = perf_counter(), entry.slowest
        took = ended - self._mark.started
        slow = (took > slowest.bar or ended > slowest.until) and slowest.add(took, ended)
        return self._times(request, ended) if slow or asked or status >= 500 else b""

    def unanswered(self, request: int, error: Unanswered, sql: CallSql | None, log: bytes, *, timed: bool) -> None:
        """Tell the front that a call ended without an answer; nothing that it wrote is kept.

        `timed`: include the times of its steps.
        """
        if isinstance(error, StaleRelease):
            # The call has written nothing.
            self.denials.take(sql)
            frames.send(self._sock, request, frames.HELD if isinstance(error, WriteHeld) else frames.STALE)
            return
        code = error.code
        if isinstance(error, GuestFault) and sql is not None:
            sql.rollback()
            # If the guest failed because it hit a limit, that is what the caller should know.
            code = sql.limit_code or code
        self.deny(request, sql)
        self.fault(request, code, error.message, log, self._times(request, perf_counter()) if timed else b"")

    def fault(self, request: int, code: str, message: str, log: bytes = b"", before: bytes = b"") -> None:
        """Tell the front of a fault, with the frames `before` it."""
        if log:
            frames.send(self._sock, request, frames.LOG, b"", log)
        frames.send_json(
            self._sock, request, frames.FAULT, frames.Fault(code, message[: frames.FAULT_TEXT], status_of(code)), before
        )

    def _times(self, request: int, ended: float) -> bytes:
        return frames.pack(request, frames.TIMES, b"", self.steps.encode(self._mark.started, ended, _shown))
