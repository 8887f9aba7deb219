"""The programs as people run them, each a process of its own: `skerry`, `skerry serve`, `skerry-edge`."""

import asyncio
import ssl
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil

from control.local.process import Service
from tests.support.deadlines import deadline
from tests.support.environment import without_settings
from tests.support.forked_programs import may_be_forked
from tests.support.ports import free_port
from tests.support.replica import Replica, Site

DEADLINE = 60.0


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: bytes
    err: str

    def json(self) -> Any:
        """What it printed; the command must have succeeded."""
        assert self.status == 0, (self.status, self.out, self.err)
        return orjson.loads(self.out)


async def command(module: str, *arguments: str | Path, limit: float | None = None, **environment: str) -> Done:
    """Run `python -m module` to its end, within `limit` seconds where a test is about that, with nothing of skerry's in
    the environment but what is given."""
    kept = without_settings()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *(str(argument) for argument in arguments),
        env={**kept, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with deadline(DEADLINE, limit):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, out, err.decode())


async def skerry(to: Replica, *arguments: str | Path, token: str | None = None) -> Done:
    """`skerry …` as an operator of this control: its admin, or the one with the `token`."""
    who = to.admin if token is None else token
    return await command("control.cli", *arguments, SKERRY_URL=to.url, SKERRY_TOKEN=who, SKERRY_CA=str(to.ca))


async def join(to: Replica, state: Path, name: str, *more: str) -> Done:
    """Make a token and join with it, both by their commands."""
    token = (await skerry(to, "node", "token", "--json")).json()["token"]
    return await command(
        "edge_runtime.cli.main",
        "join",
        "--control",
        to.url,
        "--state",
        state,
        "--name",
        name,
        *more,
        SKERRY_JOIN_TOKEN=token,
    )


def runs(process: psutil.Process) -> bool:
    """Whether it hasn't ended; one that nobody has reaped has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        # It ended between the two.
        return False


async def until(condition: Callable[[], Any], what: str, seconds: float | None = None) -> Any:
    """What `condition()`, a coroutine function, returns as soon as that is true."""
    try:
        async with deadline(DEADLINE, seconds):
            while not (found := await condition()):
                await asyncio.sleep(0.02)
            return found
    except TimeoutError:
        raise AssertionError(f"after {seconds or DEADLINE:.0f} s still not so: {what}") from None


class Faults:
    """A folder of fault points (control/protocol/faults.py) that programs are started with."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def arm(self, point: str, action: str) -> None:
        """`hold` or `kill` the process that comes to `point` next."""
        assert action in ("hold", "kill")
        (self.folder / f"{point}.held").unlink(missing_ok=True)
        # In one step: a process that comes there meanwhile must not find it empty.
        made = self.folder / f"{point}.made"
        made.write_text(action)
        made.rename(self.folder / point)

    async def reached(self, point: str) -> None:
        """Wait until a process has come to the fault point and is held there."""
        held = self.folder / f"{point}.held"

        async def there() -> bool:
            return held.exists()

        await until(there, f"a process came to {point}")

    def let_go(self, point: str) -> None:
        """Let the process that is held at the fault point go on."""
        (self.folder / f"{point}.held").unlink()


class Program(Service, ABC):
    """A program of ours that can be stopped, killed and started again; whoever made it stops it."""

    ARGUMENTS: tuple[str, ...]

    def __init__(self, name: str, folder: Path, settings: Mapping[str, str], lock: int) -> None:
        super().__init__(name, folder / f"{name}.log", lock)
        self.python = sys.executable
        """Which version of it runs: that of this Python's packages."""
        self._folder = folder
        self._settings = settings

    async def again(self) -> None:
        """Start it, and wait until it answers."""
        kept = without_settings()
        environment = {**kept, "PYTHONUNBUFFERED": "1", **self._settings}
        process = self.spawn([self.python, *self.ARGUMENTS], cwd=self._folder, env=environment)
        await self.run_until_ready(process, self.answers)

    @abstractmethod
    async def answers(self) -> bool:
        """Whether it takes requests."""

    async def ended(self) -> None:
        """Wait until it has ended by itself, or was killed."""

        async def is_so() -> bool:
            return self._process is None or self._process.poll() is not None

        await until(is_so, f"{self.name} has ended")

    def text(self) -> str:
        """Return the program's log so far."""
        return self.log.read_text()


class ControlProgram(Program):
    """`skerry serve` on a site."""

    ARGUMENTS = ("-m", "control.cli", "serve", "--log-level", "debug")
    http: aiohttp.ClientSession
    url: str

    async def answers(self) -> bool:
        try:
            async with self.http.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


class EdgeProgram(Program):
    """`skerry-edge run` on a state directory that has joined."""

    ARGUMENTS = ("-m", "edge_runtime.cli.main", "run", "--workers", "2")
    http: aiohttp.ClientSession
    url: str
    state: Path

    async def answers(self) -> bool:
        try:
            async with self.http.get(f"{self.url}/_skerry/healthz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def status(self) -> Any:
        """Return the node's own status."""
        async with self.http.get(f"{self.url}/_skerry/status") as answer:
            assert answer.status == 200
            return await answer.json()

    async def call(self, path: str, method: str = "GET", **more: Any) -> tuple[int, bytes]:
        """Status and body of a call of /functions/`path`."""
        async with self.http.request(method, f"{self.url}/functions/{path}", **more) as answer:
            return answer.status, await answer.read()

    async def rows(self, path: str, method: str = "GET") -> Any:
        """The rows that a function of tests.guests.version answers."""
        status, body = await self.call(path, method)
        assert status == 200, (status, body)
        return orjson.loads(body)["schema"]["rows"]

    async def at_release(self, number: int) -> Any:
        """Wait until it serves that release; its status then."""
        last: Any = None

        async def there() -> Any:
            nonlocal last
            last = await self.status()
            return last if last["release"] and last["release"]["number"] == number else None

        try:
            return await until(there, f"release {number} serves")
        except AssertionError as error:
            raise AssertionError(f"{error}; status {last}; log {self.text()[-3000:]}") from None

    async def file(self, *statements: str) -> list[Any]:
        """What the libsql file answers to each statement, asked by another process; an error's text for an error."""
        done = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _ASK,
            str(self.state / "db" / "skerry.db"),
            *statements,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await done.communicate()
        assert done.returncode == 0
        found: list[Any] = orjson.loads(out)
        return found


_ASK = may_be_forked("""
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
answers = []
for statement in sys.argv[2:]:
    try:
        # Who recovers the log, or is the last to close the file, has it alone for a moment: what reads waits for that.
        connection.execute(f"PRAGMA busy_timeout = {1000 if statement.startswith('BEGIN') else 60000}")
        answers.append(connection.execute(statement).fetchall())
    except sqlite3.Error as error:
        answers.append(str(error))
print(json.dumps(answers))
""")


@asynccontextmanager
async def control_program(
    site: Site, folder: Path, faults: Faults | None = None, *, python: str = sys.executable
) -> AsyncIterator[tuple[ControlProgram, Replica]]:
    """Run `skerry serve` on the site until the block ends; yield it and a client of it. `folder` has its log, `python`
    is that of the version that runs."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    settings = {
        "SKERRY_METADATA_URL": site.settings.metadata_url,
        "SKERRY_ARTIFACTS_URL": site.settings.artifacts_url,
        "SKERRY_PORT": str(port),
        "SKERRY_TLS_CERT": str(site.settings.tls_cert),
        "SKERRY_TLS_KEY": str(site.settings.tls_key),
        "SKERRY_CA_CERT": str(site.ca),
        "SKERRY_SPOOL": str(folder),
        **({"SKERRY_FAULTS": str(faults.folder)} if faults is not None else {}),
    }
    tls = ssl.create_default_context(cafile=str(site.ca))
    with open(folder / "control.lock", "w") as lock:
        program = ControlProgram("control", folder, settings, lock.fileno())
        program.url, program.python = f"https://127.0.0.1:{port}", python
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0), timeout=aiohttp.ClientTimeout(60)
        ) as http:
            program.http = http
            try:
                await program.again()
                # A client of its process has no server object.
                yield program, Replica(None, program.url, site.ca, http, site.admin)  # type: ignore[arg-type]
            finally:
                await program.stop()


@asynccontextmanager
async def edge_program(
    state: Path, faults: Faults | None = None, *, python: str = sys.executable
) -> AsyncIterator[EdgeProgram]:
    """Run `skerry-edge run` until the block ends, on a state directory that has joined; its log lies beside that.
    `python` is that of the version that runs."""
    folder = state.parent
    port = free_port()
    settings = {
        "SKERRY_EDGE_STATE": str(state),
        "SKERRY_EDGE_LISTEN": f"127.0.0.1:{port}",
        **({"SKERRY_FAULTS": str(faults.folder)} if faults is not None else {}),
    }
    with open(folder / f"{state.name}.lock", "w") as lock:
        program = EdgeProgram(state.name, folder, settings, lock.fileno())
        program.url, program.state, program.python = f"http://127.0.0.1:{port}", state, python
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as http:
            program.http = http
            try:
                await program.again()
                yield program
            finally:
                await program.stop()
