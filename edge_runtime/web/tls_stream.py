"""TLS between a client's socket and its HTTP connection: a protocol for the former, a transport for the latter.

The event loop's own TLS isn't enough: it holds the unread part of a client's answers encrypted in the socket's buffer
and doesn't report it, so that it could take any amount of memory.
"""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import Iterable
from typing import Any, Final

from edge_runtime.web.connection import HttpConnection
from edge_runtime.web.tls_files import TlsFiles

SLICE: Final = 16 * 1024
"""Bytes that pass through OpenSSL's buffers at once. Each connection keeps buffers of that size while it is open."""

Data = bytes | bytearray | memoryview


class TlsStream(asyncio.Transport, asyncio.Protocol):
    """The deadline of the connection's first head applies to the handshake, too."""

    def __init__(self, connection: HttpConnection, tls_files: TlsFiles) -> None:
        super().__init__()
        self._connection = connection
        self._files = tls_files
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls_files.context.wrap_bio(self._in, self._out, server_side=True)
        self._raw: asyncio.Transport
        self._open = False
        """The handshake is complete."""
        self._ended = False
        """The client sends nothing more, or nothing more is read from it."""
        self._finished = False
        """Nothing more is sent."""
        self._paused = False

    # The socket's transport calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = transport  # type: ignore[assignment]
        # At once: connections that never complete their handshake count as well.
        self._connection.connection_made(self)

    def data_received(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(data), SLICE):
            if self._ended:
                return
            self._in.write(view[at : at + SLICE])
            if self._open or self._shake_hands():
                self._read()

    def eof_received(self) -> bool:
        if self._ended:
            # TLS has already said that.
            return True
        self._ended = True
        return self._open and self._connection.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = self._finished = True
        self._connection.connection_lost(error)

    def pause_writing(self) -> None:
        if self._open:
            self._paused = True
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        if self._paused:
            self._paused = False
            self._connection.resume_writing()

    # TLS

    def _shake_hands(self) -> bool:
        """Go on with the handshake, and return whether it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return False
        except ssl.SSLError as error:
            self._ended = True
            self._files.note_failure(self._connection.client, error.reason or str(error))
            # OpenSSL's message about it.
            self._send()
            self._raw.close()
            return False
        self._open = True
        self._send()
        certificate = self._tls.getpeercert(binary_form=True)
        self._connection.secure(hashlib.sha256(certificate).digest() if certificate else b"")
        return True

    def _read(self) -> None:
        """Pass on what has been received."""
        pieces: list[bytes] = []
        over = False
        try:
            while piece := self._tls.read(SLICE):
                pieces.append(piece)
            over = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            # New data can't be trusted; what came before can.
            over = True
        self._send()
        if pieces:
            self._connection.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if over and not self._ended:
            self._ended = True
            if not self._connection.eof_received():
                self.close()

    def _send(self) -> None:
        """Send OpenSSL's output."""
        if self._out.pending and not self._raw.is_closing():
            self._raw.write(self._out.read())

    def _finish(self) -> None:
        """Tell the client that nothing more follows."""
        if self._open and not self._finished:
            self._finished = True
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._send()

    # The HTTP connection calls these

    def write(self, data: Data) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        if self._finished or self._raw.is_closing():
            return
        made: list[bytes] = []
        try:
            for data in list_of_data:
                view = memoryview(data)
                for at in range(0, len(view), SLICE):
                    self._tls.write(view[at : at + SLICE])
                    made.append(self._out.read())
        except ssl.SSLError:
            self._raw.abort()
            return
        self._raw.writelines(made)

    def write_eof(self) -> None:
        self._finish()
        self._ended = True
        if not self._raw.is_closing():
            self._raw.write_eof()

    def close(self) -> None:
        if not self._raw.is_closing():
            self._finish()
            self._raw.close()

    def abort(self) -> None:
        self._finished = True
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)
