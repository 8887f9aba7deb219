"""One kept-alive HTTP/1.1 connection with blocking calls. An answer's time is then almost entirely the server's;
aiohttp takes 0.3 ms of CPU for each call."""

import socket

from bench.parts.load import WrongAnswer

PIECE = 65536


class PlainClient:
    """A client of 127.0.0.1 only. Nothing else in the process runs while it waits for an answer."""

    def __init__(self, port: int, limit: float) -> None:
        """`limit`: the seconds within which each part of an answer must come."""
        self._socket = socket.create_connection(("127.0.0.1", port), limit)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, sent: bytes) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the answer, which must give its length. Raises: OSError,
        WrongAnswer."""
        self._socket.sendall(sent)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more(data)
        head = data[:end].lower()
        before, named, after = head.partition(b"\r\ncontent-length: ")
        if not (named and before.startswith(b"http/1.1 ")):
            raise WrongAnswer(data[:500].decode(errors="replace"))
        length = int(after.partition(b"\r\n")[0])
        body = data[end + 4 :]
        while len(body) < length:
            body += self._more(data)
        return int(before[9:12]), body

    def _more(self, so_far: bytes) -> bytes:
        piece = self._socket.recv(PIECE)
        if not piece:
            raise WrongAnswer(f"the connection was closed after {so_far[:500]!r}")
        return piece

    def close(self) -> None:
        self._socket.close()
