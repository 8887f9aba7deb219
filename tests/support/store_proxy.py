"""A proxy in front of the artifact store with the faults that the real one can't be made to have."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit


def always(_line: str) -> bool:
    """Choose every request."""
    return True


def never(_line: str) -> bool:
    """Choose no request."""
    return False


@dataclass
class StoreProxy:
    """`url` leads through the proxy. What is set holds for what arrives from then on."""

    url: str
    silent: Callable[[str], bool] = never
    """Tells by a request's first line whether to take it, read no more than a little of it, and answer nothing."""
    deaf: bool = False
    """Pass requests on, and keep the answers back."""
    delay: float = 0.0
    """Seconds by which each piece of an answer is late."""
    refused: Callable[[str], bool] = never
    """Tells by a request's first line whether to answer AccessDenied in the store's place."""
    piece: int = 65_536
    """Bytes of an answer that are passed on at once, at most."""
    pace: float = 0.0
    """Seconds that each piece of a request, of 64 KiB at most, takes."""
    cut: Callable[[str], bool] = never
    """Tells by a request's first line whether to pass it on, and to close the connection in place of the answer."""
    change: Callable[[bytes], bytes] = bytes
    """Returns what to pass on of a piece of a request."""
    answer: bytes = b""
    """Sent instead of the store's answer."""
    connections: int = 0
    """That are open now."""
    requests: list[str] = field(default_factory=list)
    """The first lines of the requests that came in pieces of their own."""

    def answers(self, status: int, code: str, message: str = "it says") -> None:
        """Answer each request with an error of S3's."""
        self.answer = _error(status, code, message)


def _error(status: int, code: str, message: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Error\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


@contextlib.asynccontextmanager
async def store_proxy(url: str) -> AsyncIterator[StoreProxy]:
    """Run a proxy in front of the store of an artifacts URL until the block ends."""
    parts = urlsplit(url)
    found = StoreProxy("")
    tasks: set[asyncio.Task[None]] = set()

    async def connected(client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        found.connections += 1
        server: asyncio.StreamWriter | None = None
        try:
            server_reader, server = await asyncio.open_connection(parts.hostname, parts.port)
            asked = [""]
            async with asyncio.TaskGroup() as group:
                group.create_task(_up(found, client_reader, client, server, asked))
                group.create_task(_down(found, server_reader, client, asked))
        except* ConnectionError:
            pass
        finally:
            found.connections -= 1
            tasks.discard(task)
            for writer in (client, server):
                if writer is not None:
                    writer.transport.abort()

    # Small buffers, so that a body which isn't read stands soon.
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    listener = await asyncio.start_server(connected, sock=listening, limit=2**14)
    user = parts.netloc.rpartition("@")[0]
    found.url = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
    try:
        yield found
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _up(
    proxy: StoreProxy,
    reader: asyncio.StreamReader,
    client: asyncio.StreamWriter,
    server: asyncio.StreamWriter,
    asked: list[str],
) -> None:
    """Pass requests on; the last one's first line is in `asked`."""
    while data := await reader.read(65536):
        line = data[:4096].partition(b"\r\n")[0].decode("latin-1")
        proxy.requests.append(line)
        if line.endswith("HTTP/1.1"):
            asked[0] = line
        while proxy.silent(line):
            # The client's leaving isn't seen while nothing is read: it shows in the socket's state.
            await asyncio.sleep(0.02)
            if reader.at_eof() or client.is_closing():
                raise ConnectionResetError
        answer = _error(403, "AccessDenied", "it says") if proxy.refused(line) else proxy.answer
        if answer:
            client.write(answer)
            await client.drain()
            client.close()
            await client.wait_closed()
            break
        await asyncio.sleep(proxy.pace)
        server.write(proxy.change(data))
        await server.drain()
    raise ConnectionResetError


async def _down(
    proxy: StoreProxy, reader: asyncio.StreamReader, client: asyncio.StreamWriter, asked: list[str]
) -> None:
    while data := await reader.read(proxy.piece):
        if proxy.cut(asked[0]):
            break
        while proxy.deaf:
            await asyncio.sleep(0.02)
        await asyncio.sleep(proxy.delay)
        client.write(data)
        await client.drain()
    raise ConnectionResetError
