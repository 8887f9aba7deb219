"""A stream of nodes' records and accompanying notices, which continues when a replica stops."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp
import orjson

from control.cli.support import output
from control.cli.support.client import (
    ATTEMPTS,
    CURES,
    Client,
    Json,
    RequestRefused,
    Unreachable,
    answer_of,
    path,
    problem_of,
)

SILENCE = 20.0
"""Seconds without a byte of an endless answer after which it counts as lost: control sends an empty line every 5 s."""
OVERLAP = timedelta(seconds=5)
"""How far before the last line to resume after an interruption: duplicates are left out."""
RECENT = 50_000
"""Lines that are remembered to find duplicates."""
LONGEST_PAUSE = 5.0
"""Maximum seconds between two attempts to resume."""
REOPENINGS = 30
"""How often in a row an open view may be lost. If each is lost at once, that is two minutes, in which control may
restart."""
GOES_ON = ("shutting_down", "watch_ended", "role_insufficient")
"""Codes of views that have ended and can be reopened at once."""
ONCE = ("begin", "offline", "too_old", "silent", "history")
"""Notices that say nothing new when a view is reopened."""


class RecordClient(Client):
    """A client that can also read an endless answer."""

    async def lines(self, where: str, **query: str | int | None) -> AsyncIterator[tuple[bytes, datetime | None]]:
        """Yield the lines of an endless answer as they arrive, with control's time when it began to answer.

        Raises: RequestRefused, when control answers 4xx; Unreachable, when it can't be reached or trusted, answers 503,
        or says nothing for `SILENCE` seconds; Failure, when it answers anything else that isn't a success.
        """
        headers = {"accept": "application/x-ndjson"}
        if self._to.token:
            headers["authorization"] = f"Bearer {self._to.token}"
        parameters = {name: str(value) for name, value in query.items() if value is not None}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)
        try:
            async with self._open().get(
                self._to.url + where, params=parameters, headers=headers, allow_redirects=False, timeout=limits
            ) as response:
                if response.status != 200:
                    content = await response.read()
                    if response.status == 503:
                        raise problem_of(Unreachable, "GET", where, response.status, content)
                    answer_of("GET", where, response.status, content)
                began, rest = _date(response.headers.get("date")), b""
                async for piece in response.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        yield line, began
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise self.untrusted(error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.unreachable(error) from error


class Part(NamedTuple):
    """A record or a notice."""

    record: Json | None
    notice: Json | None
    raw: bytes


class _Recent:
    """The most recent lines."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._known: set[int] = set()

    def new(self, line: bytes) -> bool:
        """Remember a line; return whether it is new."""
        key = hash(line)
        if key in self._known:
            return False
        self._known.add(key)
        self._order.append(key)
        if len(self._order) > RECENT:
            self._known.discard(self._order.popleft())
        return True


async def parts(control: RecordClient, query: dict[str, str | int | None]) -> AsyncIterator[Part]:
    """Yield records and notices until all existing ones have arrived, or with `follow` until the caller ends.

    Raises: RequestRefused, when control refuses it, even later; Unreachable, when control can't be reached in
    `ATTEMPTS`, or in `REOPENINGS` if it was reached before and `follow` is set.
    """
    recent, again, failures, attempts = _Recent(), False, 0, ATTEMPTS
    follow = bool(query.get("follow"))
    while True:
        heard: datetime | None = None
        cause = "control has closed the connection"
        began, skew = datetime.now(UTC), timedelta()
        try:
            async for line, date in control.lines(path("logs"), **query):
                if heard is None and date is not None:
                    skew = date - datetime.now(UTC)
                heard = datetime.now(UTC) + skew
                if not line:
                    continue
                said: Json = orjson.loads(line)
                if said["kind"] != "notice":
                    failures = 0
                    # Before the first interruption there are no duplicates, only lines that were written twice.
                    if recent.new(line) or not again:
                        yield Part(said, None, line)
                    continue
                if said["notice"] == "end":
                    if said.get("code") not in GOES_ON:
                        code = said.get("code", "")
                        raise RequestRefused(said["message"], code=code, cure=CURES.get(code, ""))
                    cause = said["message"]
                    break
                if not (again and said["notice"] in ONCE):
                    yield Part(None, said, line)
                if said["notice"] == "history" and not follow:
                    return
        except Unreachable as error:
            if error.code == "tls":
                raise
            cause = str(error)
            if follow and heard is not None:
                failures, attempts = 0, REOPENINGS
            failures += 1
            if failures >= attempts:
                raise
        again = again or heard is not None
        if heard is not None:
            output.note(f"{cause}; going on from there", style="yellow")
            query = {**query, "since": (heard - OVERLAP).isoformat() if follow else query.get("since")}
        pause = min(0.25 * 2**failures, LONGEST_PAUSE) * random.uniform(0.75, 1.25)  # noqa: S311
        await asyncio.sleep(pause if (datetime.now(UTC) - began).total_seconds() < 5 else 0.1)


def _date(text: str | None) -> datetime | None:
    try:
        return None if text is None else parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None
