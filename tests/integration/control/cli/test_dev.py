"""`skerry dev`, as an author uses it: a project in an editor, and calls beside it."""

import asyncio
import contextlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import orjson
import psutil
import pytest

from control.cli.project.dev import HOST, PORTS
from tests.guests.build import guest
from tests.support import projects
from tests.support.deadlines import scaled
from tests.support.ports import free_port
from tests.support.programs import command, runs, until
from tests.support.projects import compilers

pytestmark = [pytest.mark.usefixtures("compilers")]
__all__ = ["compilers"]

CALLED = re.compile(r"^POST /functions/notes\?author=ada  201  \d+\.\d ms$", re.MULTILINE)


class Dev:
    """A running `skerry dev`: what it printed, and its function."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, http: aiohttp.ClientSession) -> None:
        self.process = process
        self.text = ""
        self.url = url
        self._http = http
        self._read = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        assert self.process.stdout is not None
        while piece := await self.process.stdout.read(65_536):
            self.text += piece.decode()

    async def said(self, what: str, times: int = 1) -> None:
        """Wait until it has printed that so often."""

        async def there() -> bool:
            # Where it has ended, all that it has printed is read.
            return len(re.findall(what, self.text)) >= times or self._read.done()

        with contextlib.suppress(AssertionError):
            await until(there, what)
        assert len(re.findall(what, self.text)) >= times, self.text

    async def call(
        self, query: str, method: str = "GET", body: bytes = b"", below: str = "/functions/notes"
    ) -> tuple[int, object]:
        async with self._http.request(method, self.url + below + query, data=body or None) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def stop(self) -> int:
        """Ctrl-C."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        await asyncio.wait_for(self.process.wait(), scaled(60))
        await self._read
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.asynccontextmanager
async def dev(folder: Path, *more: str | Path, port: int | None = None) -> AsyncIterator[Dev]:
    """`skerry dev` on a port; 0: on the one that it chooses."""
    port = free_port() if port is None else port
    listen = ("--listen", f"127.0.0.1:{port}") if port else ()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", "dev", str(folder), *listen, *map(str, more)),
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
        toml.write_text(toml.read_text().replace("{path", '{hosts = ["shop.example", "*.shop.example"], path'))
        await running.said(r"\(and shop.example/of/{author}, \*.shop.example/of/{author}\) serves it")
        assert (await running.call("/of/x?author=ada", below=""))[0] == 404
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


def prebuilt(folder: Path, name: str, manifest: str = "") -> Path:
    """A project of a module that is built already, and answers what it is sent."""
    folder.mkdir(parents=True)
    (folder / "function.wasm").write_bytes(guest("fetch" if manifest else "echo"))
    (folder / "function.toml").write_text(f'name = "{name}"\nmodule = "function.wasm"\n[manifest]\n{manifest}\n')
    return folder


async def test_several_serve_side_by_side(tmp_path: Path) -> None:
    """Each takes a port of its own, though they start at the same moment."""
    folders = [prebuilt(tmp_path / name, name) for name in ("one", "two", "three")]
    async with dev(folders[0], port=0) as first, dev(folders[1], port=0) as second, dev(folders[2], port=0) as third:
        addresses = set()
        for running, name in ((first, "one"), (second, "two"), (third, "three")):
            await running.said("serves it")
            found = re.search(rf"(http://127.0.0.1:\d+)/functions/{name} serves it", running.text)
            assert found is not None
            addresses.add(found[1])
            async with aiohttp.ClientSession() as http, http.post(f"{found[1]}/functions/{name}", data=b"x") as answer:
                assert await answer.read() == b"x"
        assert len(addresses) == 3


async def test_a_port_that_another_program_has_is_not_chosen(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # some other program has it already
            stack.enter_context(socket.create_server((HOST, PORTS[0])))
        async with dev(prebuilt(tmp_path / "project", "one"), port=0) as running:
            await running.said("serves it")
            found = re.search(rf"http://{HOST}:(\d+)/functions/one serves it", running.text)
            assert found is not None
            assert int(found[1]) in PORTS[1:]


async def test_a_file_of_secrets_is_read_when_it_is_mended(tmp_path: Path) -> None:
    folder = prebuilt(tmp_path / "project", "till", 'secrets = ["KEY"]')
    # In the project itself, where a change of another file would have it built again.
    secrets = folder / "secrets.toml"
    secrets.write_text('[tll]\nKEY = "first"\n')
    async with dev(folder, "--secrets", secrets) as running:
        await running.said(r"others may use .*secrets\.toml")
        secrets.chmod(0o600)
        # As it was said before.
        await running.said(r"put it into .*secrets\.toml, in the table \[till\]", 2)
        secrets.write_text("[till]\nKEY = ")
        await running.said("is no valid TOML")
        secrets.write_text('[till]\nKEY = "second"\n')
        await running.said("serves it")
        assert running.text.count("serves it") == 1

        async def is_value(value: str) -> bool:
            url = f"{running.url}/functions/till?env=KEY"
            async with aiohttp.ClientSession() as http, http.get(url) as answer:
                return await answer.text() == value

        await until(lambda: is_value("second"), "the second value is served")
        # As editors write: another file, put in its place.
        (tmp_path / "new").write_text('[till]\nKEY = "third"\n')
        (tmp_path / "new").chmod(0o600)
        (tmp_path / "new").rename(secrets)
        await running.said("serves it", 2)
        await until(lambda: is_value("third"), "the third value is served")
        assert running.text.count("built in") == 1


async def test_a_snapshot_is_made_at_build_and_has_no_secret_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "tests").mkdir(parents=True)
    (folder / "source").write_bytes(guest("remembers"))
    toml, secrets = folder / "function.toml", tmp_path / "secrets.toml"
    toml.write_text(
        'name = "f"\nmodule = "function.wasm"\nbuild = "cp source function.wasm"\n'
        'snapshot = { init = "warm", renew = "anew" }\n[manifest]\nsecrets = ["WORD"]\n'
    )
    secrets.write_text('[f]\nWORD = "a line in the log"\n')
    secrets.chmod(0o600)
    async with dev(folder, "--secrets", secrets) as running:
        await running.said("Its memory has the secret WORD in it")
        secrets.write_text('[f]\nWORD = "what only calls have"\n')
        toml.write_text(toml.read_text() + "# built again\n")
        await running.said("serves it")
        async with aiohttp.ClientSession() as http, http.get(f"{running.url}/functions/f") as answer:
            assert re.search(
                r"^stdin , 0 arguments, 0 variables,.* call 1;.* what only calls have ", await answer.text()
            )
    (folder / "tests" / "f.toml").write_text(
        'secrets = { WORD = "x" }\n[[case]]\nname = "begins"\nrequest = { path = "/" }\nstatus = 200\n'
    )
    tested = await command("control.cli", "test", folder)
    assert (tested.status, b"1 passed" in tested.out) == (0, True), tested


async def test_secrets_without_a_file_are_told_with_the_cure(tmp_path: Path) -> None:
    folder = prebuilt(tmp_path / "project", "till", 'secrets = ["KEY"]')
    async with dev(folder) as running:
        await running.said(r"\(KEY of till\): start `skerry dev` with --secrets FILE")
        assert "/secrets.toml" not in running.text
    async with dev(folder, "--state", tmp_path / "state") as running:
        await running.said("secret_missing")
        own = tmp_path / "state" / "secrets.toml"
        own.write_text('[till]\nKEY = "own"\n')
        own.chmod(0o600)
        await running.said("serves it")


async def test_all_functions_of_a_project_are_served(tmp_path: Path) -> None:
    for name in ("orders", "stock"):
        folder = prebuilt(tmp_path / name, name)
        # Its build notes that it was run.
        toml = folder / "function.toml"
        toml.write_text("build = \"sh -c 'cp source function.wasm; echo >>log.o'\"\n" + toml.read_text())
        (folder / "source").write_bytes((folder / "function.wasm").read_bytes())
    (tmp_path / "skerry.toml").write_text('name = "shop"\nschema = "schema"\n')
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / "0001_orders.sql").write_text("CREATE TABLE orders (id INTEGER PRIMARY KEY);")

    def builds() -> list[int]:
        return [len((tmp_path / name / "log.o").read_text()) for name in ("orders", "stock")]

    async with dev(tmp_path) as running:
        await running.said(r"/functions/stock serves it.*schema 1")
        assert re.search(r"/functions/orders$", running.text, re.MULTILINE)
        for name in ("orders", "stock"):
            url = f"{running.url}/functions/{name}"
            async with aiohttp.ClientSession() as http, http.post(url, data=b"x") as answer:
                assert (answer.status, await answer.read()) == (200, b"x")
        assert builds() == [1, 1]
        # Only what has changed is built again; a function that is gone isn't served any more.
        with (tmp_path / "stock" / "source").open("ab") as source:
            source.write(b"\0\1\0")
        await running.said("serves it", 2)
        assert builds() == [1, 2]
        (tmp_path / "stock" / "function.toml").unlink()
        await running.said("/functions/orders serves it")
        async with aiohttp.ClientSession() as http, http.get(f"{running.url}/functions/stock") as answer:
            assert answer.status == 404
        assert builds()[1] == 2


async def test_a_tick_is_started_by_hand(tmp_path: Path) -> None:
    folder = prebuilt(tmp_path / "project", "nightly", 'schedule = ["0 3 * * *"]\ntimezone = "Europe/Berlin"')
    (folder / "function.wasm").write_bytes(guest("tick"))

    async def text(url: str, method: str = "POST") -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.request(method, url, data=b"body") as answer:
            return answer.status, await answer.text()

    async with dev(folder) as running:
        await running.said("a tick of nightly, by hand: curl -X POST http://")
        found = re.search(r"curl -X POST (http://\S+)", running.text)
        assert found is not None
        now = datetime.now(UTC)
        status, said = await text(found[1])
        event, at, cron = said.split("|")
        assert (status, event, cron) == (200, "schedule", "0 3 * * *")
        assert abs(datetime.fromisoformat(at) - now) < timedelta(seconds=scaled(30))
        given = f"{found[1]}?cron=0+3+*+*+*&at=2026-03-29T05:00:00%2B02:00"
        assert await text(given) == (200, "schedule|2026-03-29T03:00:00Z|0 3 * * *")
        await running.said(r"POST /functions/nightly/  200", 2)
        # What the function doesn't have isn't called.
        for query, told in (
            ("?cron=*+*+*+*+*", "nightly's schedule has no line * * * * *, only 0 3 * * *."),
            ("?event=release", "its manifest has no on_release = true"),
            ("?at=yesterday", "Invalid RFC3339"),
            ("?crom=x", "unknown field `crom`"),
        ):
            status, said = await text(found[1] + query)
            assert status == 400
            assert told in said
        assert (await text(found[1], "GET"))[0] == 405
        assert (await text(found[1].replace("nightly", "other")))[0] == 404


async def test_an_address_that_is_taken_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    await projects.made("c", folder)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, dev(folder, "--listen", f"127.0.0.1:{port}") as running:
        await running.said("the local edge has ended")
        assert await asyncio.wait_for(running.process.wait(), scaled(60)) == 1
    assert f"can't listen on 127.0.0.1:{port}" in running.text
    assert "--listen of `skerry dev`" in running.text
