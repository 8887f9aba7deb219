"""`skerry dev`, as an author uses it: a project in an editor, and calls beside it."""

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import orjson
import psutil
import pytest

from tests.support import projects
from tests.support.ports import free_port
from tests.support.programs import runs, until
from tests.support.projects import compilers

pytestmark = [pytest.mark.usefixtures("compilers")]
__all__ = ["compilers"]

CALLED = re.compile(r"^POST /functions/notes\?author=ada  201  \d+\.\d ms$", re.MULTILINE)


class Dev:
    """A running `skerry dev`: what it printed, and its function."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, http: aiohttp.ClientSession) -> None:
        self.process = process
        self.text = ""
        self._url = url
        self._http = http
        self._read = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        assert self.process.stdout is not None
        while piece := await self.process.stdout.read(65_536):
            self.text += piece.decode()

    async def said(self, what: str, times: int = 1) -> None:
        """Wait until it has printed that so often."""

        async def there() -> bool:
            return len(re.findall(what, self.text)) >= times or self.process.returncode is not None

        with contextlib.suppress(AssertionError):
            await until(there, what)
        assert len(re.findall(what, self.text)) >= times, self.text

    async def call(
        self, query: str, method: str = "GET", body: bytes = b"", below: str = "/functions/notes"
    ) -> tuple[int, object]:
        async with self._http.request(method, self._url + below + query, data=body or None) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def stop(self) -> int:
        """Ctrl-C."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        await asyncio.wait_for(self.process.wait(), 60)
        await self._read
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.asynccontextmanager
async def dev(folder: Path, *more: str | Path) -> AsyncIterator[Dev]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", "dev", str(folder), "--listen", f"127.0.0.1:{port}", *map(str, more)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with aiohttp.ClientSession() as http:
        running = Dev(process, f"http://127.0.0.1:{port}", http)
        try:
            yield running
        finally:
            await running.stop()


async def ended(processes: list[psutil.Process]) -> None:
    """Wait for processes that end with `skerry dev`, however that ended: workers do when their parents have."""

    async def gone() -> bool:
        return not any(map(runs, processes))

    await until(gone, "the edge has ended with `skerry dev`")


async def test_the_loop_of_an_author(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    await projects.made("c", folder)
    source, second = folder / "main.c", folder / "schema" / "0002_tags.sql"
    program = source.read_text()
    async with dev(folder) as running:
        await running.said("serves it")
        assert await running.call("?author=ada", "POST", b"milk") == (201, {"author": "ada", "id": 1})
        await running.said(CALLED.pattern.strip("^$"))

        # A change of the source is built and swapped in; the data stay. What it logs is shown.
        source.write_text(
            program.replace('\\"notes\\"', '\\"lines\\"').replace(
                "int main(void) {", 'int main(void) {\nfputs("\\033here\\n", stderr);'
            )
        )
        await running.said("serves it", 2)
        assert await running.call("?author=ada") == (200, {"author": "ada", "lines": ["milk"]})
        await running.said(r"  \| .*\ufffdhere")

        # A build that fails is shown, and the version before serves on.
        source.write_text(program + "\nno C;\n")
        await running.said("main.c:.*error: ")
        await running.said("the version before serves on")
        assert (await running.call("?author=ada"))[1] == {"author": "ada", "lines": ["milk"]}

        # So is a schema change that can't be applied; then it is amended before it ever was.
        source.write_text(program)
        await running.said("serves it", 3)
        second.write_text("CREATE TABLE tags (tag TEXT")
        await running.said("schema change 2")
        second.write_text("CREATE TABLE tags (tag TEXT);")
        await running.said(r"serves it.*schema 2", 1)
        assert (await running.call("?author=ada"))[1] == {"author": "ada", "notes": ["milk"]}
        built = running.text.count("built in")

        # One that was applied makes the database anew. A change of the schema builds nothing.
        second.write_text("CREATE TABLE tags (tag TEXT PRIMARY KEY);")
        await running.said("the database is made again")
        await running.said(r"serves it.*schema 2", 2)
        assert (await running.call("?author=ada"))[1] == {"author": "ada", "notes": []}
        assert running.text.count("built in") == built

        # The manifest is followed too.
        toml = folder / "function.toml"
        route = 'sql = "read"\nroute = {path = "/of/{author}"}'
        toml.write_text(toml.read_text().replace('sql = "write"', route))
        await running.said(r"\(and /of/{author}\) serves it")
        assert (await running.call("/of/x?author=ada", below=""))[0] == 200
        await running.said(r"GET /of/x\?author=ada  200")
        assert (await running.call("?author=ada", "POST", b"x"))[0] == 500
        await running.said("not_granted")
        toml.write_text("name =")
        await running.said("function.toml can't be read")

        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) > 2
        assert await running.stop() == 130
        await ended(children)


async def test_a_state_that_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    await projects.made("c", folder)
    async with dev(folder, "--state", tmp_path / "state") as running:
        await running.said("serves it")
        await running.call("?author=ada", "POST", b"milk")
        edge = psutil.Process(running.process.pid).children(recursive=True)
        running.process.kill()
        await running.process.wait()
        await ended(edge)
    # It goes on from there; what the manifest names as a secret is in a file of the author's.
    toml, secrets = folder / "function.toml", tmp_path / "secrets.toml"
    toml.write_text(toml.read_text().replace('sql = "write"', 'sql = "write"\nsecrets = ["KEY"]'))
    secrets.write_text('[notes]\nKEY = "opens"\n')
    secrets.chmod(0o600)
    program = (folder / "main.c").read_text()
    (folder / "main.c").write_text(
        program.replace("int main(void) {", 'int main(void) {\nfputs(getenv("KEY"), stderr);')
    )
    async with dev(folder, "--state", tmp_path / "state", "--secrets", secrets) as running:
        await running.said("serves it")
        assert await running.call("?author=ada") == (200, {"author": "ada", "notes": ["milk"]})
        # It has the secret's value, which no line of the log may show.
        await running.said(r"\| .*\[secret KEY\]")
        assert "opens" not in running.text


async def test_an_address_that_is_taken_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    await projects.made("c", folder)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, dev(folder, "--listen", f"127.0.0.1:{port}") as running:
        await running.said("the local edge has ended")
        assert await asyncio.wait_for(running.process.wait(), 60) == 1
    assert f"can't listen on 127.0.0.1:{port}" in running.text
