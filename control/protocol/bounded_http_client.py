"""HTTP clients that no server can keep busy before it answers: what comes before the end of a head is bounded.

aiohttp reads interim answers (1xx) for as long as they come, and as long as there is one more, nothing else in the
process gets its turn, not even the limit of the request. Here a connection ends if it sends too many of them, too much
before the end of the head that was asked for, or another answer after it.
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
"""Bytes that are parsed between two checks whether they are too many: some milliseconds of the smallest answers."""
SWITCHING_PROTOCOLS: Final = 101
"""The one status below 200 that is an answer itself."""


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
        """Take an answer that was parsed, an interim one too: an upload waits for "100 Continue"."""
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
    """aiohttp's connector, whose connections end if too much comes before an answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no other way to say what makes a connection's end.
        self._factory = functools.partial(_BoundedHandler, loop=self._loop)  # type: ignore[assignment]
