"""HTTP clients that a server can't keep busy before it answers: what it may send up to the end of a head is bounded.

aiohttp reads interim answers (1xx) for as long as they arrive, and meanwhile nothing else in the process runs, not even
the request's timeout. Here a connection is closed if the server sends too many of them, too many bytes before the end
of the final head, or another answer after it.
"""

import asyncio
import functools
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

MOST_BYTES: Final = 128 * 1024
"""Bytes of an answer's head, and of all interim answers before it."""
MOST_INTERIM: Final = 16
"""Interim answers before an answer."""
PIECE: Final = 16 * 1024
"""Bytes that are parsed between two checks of the limits: some milliseconds' worth of the smallest answers."""
SWITCHING_PROTOCOLS: Final = 101
"""The only status below 200 that is a final answer."""


class _BoundedHandler(ResponseHandler):
    """aiohttp's end of a connection; a request begins with `set_response_params`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._head_bytes = self._interim = 0
        self._answered = True

    def set_response_params(self, **params: Any) -> None:
        self._head_bytes = self._interim = 0
        self._answered = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        while True:
            piece, data = data[:PIECE], data[PIECE:]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if not self._answered and self._head_bytes > MOST_BYTES:
                self._refuse(f"more than {MOST_BYTES} bytes came before the end of its head")
            if not data or self.exception() is not None:
                return

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take a parsed answer, including an interim one: an upload waits for "100 Continue"."""
        status = data[0].code
        if self._answered:
            self._refuse("another answer came, which nobody had asked for")
        elif status >= 200 or status == SWITCHING_PROTOCOLS:
            self._answered = True
        else:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                self._refuse(f"more than {MOST_INTERIM} interim answers came before it")
        if self.exception() is None:
            super().feed_data(data, size)

    def _refuse(self, why: str) -> None:
        if self.exception() is None:
            self.set_exception(HttpProcessingError(code=502, message=why))
            if self.transport is not None:
                self.transport.close()


class BoundedConnector(aiohttp.TCPConnector):
    """aiohttp's connector, which closes a connection on which too much arrives before an answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no other way to set the class of its protocols.
        self._factory = functools.partial(_BoundedHandler, loop=self._loop)  # type: ignore[assignment]
