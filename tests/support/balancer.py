"""A balancer of TCP connections before several servers, as one stands before replicas of control."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand bytes on until their end, and say that."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


class Balancer:
    """Connects each client to the next server in turn that takes the connection."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client's connection until both sides have ended it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to: asyncio.StreamWriter | None = None
        try:
            for _ in self._ports:
                port = self._ports[self._next % len(self._ports)]
                self._next += 1
                with contextlib.suppress(OSError):
                    answers, to = await asyncio.open_connection("127.0.0.1", port)
                    await asyncio.gather(_pass_on(reader, to), _pass_on(answers, writer))
                    break
        finally:
            for end in (writer, to):
                if end is not None:
                    end.close()
            self._tasks.discard(task)

    def cut(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def balancing(ports: Sequence[int]) -> AsyncIterator[int]:
    """Run a balancer before these ports of 127.0.0.1 until the block ends; its own port."""
    balancer = Balancer(ports)
    server = await asyncio.start_server(balancer.take, "127.0.0.1", 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        balancer.cut()
