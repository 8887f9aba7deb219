"""A proxy to a database that cuts the connection at a COMMIT, before or after the database got it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit


@dataclass
class Cutter:
    """`url` leads through the proxy. `before` or `after` further COMMITs of transactions that wrote are cut."""

    url: str
    before: int = 0
    after: int = 0
    cuts: int = 0
    refusing: bool = False
    """Cut every connection at once, as a database that is away."""
    frozen: bool = False
    """Take what comes, and pass nothing on, as a database that stands."""
    freezing: bytes = b""
    """Be `frozen` from when a statement comes that has this in it."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


@contextlib.asynccontextmanager
async def cutting(url: str) -> AsyncIterator[Cutter]:
    """Run a proxy in front of the database at `url` until the block ends."""
    parts = urlsplit(url)
    found = Cutter("")
    tasks: set[asyncio.Task[None]] = set()

    async def connected(client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            if not found.refusing:
                server_reader, server = await asyncio.open_connection(parts.hostname, parts.port)
                await passing(client_reader, client, server_reader, server)
        except ConnectionError:
            pass
        finally:
            tasks.discard(task)
            if not client.is_closing():
                client.transport.abort()

    async def passing(
        client_reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        found._writers |= {client, server}
        state = {"readonly": False, "mute": False}

        def abort() -> None:
            found.cuts += 1
            client.transport.abort()
            server.transport.abort()

        async def thawed() -> None:
            while found.frozen and not client.is_closing():
                await asyncio.sleep(0.02)

        async def up() -> None:
            while data := await client_reader.read(65536):
                if found.freezing and found.freezing in data:
                    found.frozen = True
                await thawed()
                if b"BEGIN" in data:
                    state["readonly"] = b"READ ONLY" in data
                if b"COMMIT" in data and not state["readonly"]:
                    if found.before > 0:
                        found.before -= 1
                        abort()
                        return
                    if found.after > 0:
                        found.after -= 1
                        state["mute"] = True
                server.write(data)
                await server.drain()
            server.close()

        async def down() -> None:
            while data := await server_reader.read(65536):
                await thawed()
                if state["mute"]:
                    abort()
                    return
                client.write(data)
                await client.drain()
            await thawed()
            client.close()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(up())
                group.create_task(down())
        except* ConnectionError:
            # Whichever side is left: nobody else would end it.
            client.transport.abort()
            server.transport.abort()
        finally:
            found._writers -= {client, server}
            if not server.is_closing():
                server.transport.abort()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    user = parts.netloc.rpartition("@")[0]
    found.url = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
    try:
        yield found
    finally:
        listener.close()
        found.frozen = False
        found.cut_all()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
