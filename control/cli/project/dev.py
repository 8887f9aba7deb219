"""`skerry dev`: a project on its own edge, a child process `skerry-edge dev`, which follows the project's files."""

import asyncio
import contextlib
import socket
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import click
import orjson

from control.cli.project import project_files, toolchains
from control.cli.project.followed_files import FollowedFiles
from control.cli.project.project_files import FunctionSource, Project
from control.cli.support import options, output
from control.cli.support.client import Failure, Json

SECRETS = "secrets.toml"
"""The file in the edge's folder that has secrets, unless another one is named."""
HOST = "127.0.0.1"
PORTS = range(8088, 8188)
"""Ports that are tried in turn if none is named."""
STOP_LIMIT = 15.0
"""Seconds that the edge has to exit before it is killed."""
LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of the longest line that is read from the edge: a function may log much in one line."""


class EdgeEnded(Failure):
    """The local edge exited by itself."""


@contextlib.contextmanager
def free_address() -> Iterator[str]:
    """Choose an address that nobody listens on; no other `skerry dev` takes it while the block runs.

    Raises: Failure, when all ports are taken.
    """
    for port in PORTS:
        with socket.socket(socket.AF_UNIX) as mark, socket.socket() as tried:
            try:
                # A kernel name that is freed when this process exits: if several processes try at once, only one
                # gets it, although none of them listens yet.
                mark.bind(f"\0skerry-dev-{port}")
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind((HOST, port))
            except OSError:
                continue
            yield f"{HOST}:{port}"
            return
    raise Failure(f"the ports {PORTS[0]} to {PORTS[-1]} are all taken", cure="name another address with --listen")


class LocalEdge:
    """The child process, as an asynchronous context manager.

    It reads what to serve from stdin, one JSON object per line, and writes calls, logs and answers to stdout.
    """

    def __init__(self, state: Path, listen: str, secrets: Path | None) -> None:
        self._state = state
        self._secrets = secrets
        self._listen = listen
        self._process: asyncio.subprocess.Process
        self._answers: asyncio.Queue[Json] = asyncio.Queue()
        self._ready = False
        self._fresh = False
        """Whether to restart the edge with a new database once it has exited."""
        self.serves = False
        """Whether a version of the functions is being served."""

    async def __aenter__(self) -> Self:
        await self._start(fresh=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def watch(self) -> None:
        """Show the edge's calls and logs until cancelled.

        Raises: EdgeEnded, when the edge exits by itself.
        """
        while True:
            process = self._process
            assert process.stdout is not None  # noqa: S101
            while line := await process.stdout.readline():
                told = orjson.loads(line)
                if told["event"] == "call":
                    _show_call(told)
                elif told["event"] == "log":
                    output.say(f"  | {output.logged(told['text'])}", style="dim")
                elif told["event"] == "compiling":
                    output.say(f"compiling {told['what']}; that takes a while", style="yellow")
                else:
                    self._answers.put_nowait(told)
            status = await process.wait()
            if not self._fresh:
                raise EdgeEnded(f"the local edge has ended with status {status}; above is what it said")
            self._fresh = False
            await self._start(fresh=True)

    async def release(self, found: Project) -> None:
        """Have the edge serve the project's current modules and schema.

        Raises: Failure, with the reason, when the edge can't serve them.
        """
        wanted = {
            "functions": [
                {"name": f.name, "module": str(f.module.absolute()), "manifest": f.manifest} for f in found.functions
            ],
            "changes": [{"number": c.number, "name": c.name, "sql": c.sql} for c in found.changes()],
        }
        answer = await self._ask(wanted)
        if answer["event"] == "outdated":
            output.say(f"{answer['message']}: the database is made again", style="yellow")
            self._fresh, self._ready, self.serves = True, False, False
            self._close()
            answer = await self._ask(wanted)
        if answer["event"] != "serving":
            raise Failure(answer["message"], code=answer.get("code", ""))
        self.serves = True
        told = f"serves it, {answer['seconds'] * 1000:.0f} ms later (schema {answer['schema']})"
        *others, last = [self._url(source) for source in found.functions]
        for url in others:
            output.say(url, "green")
        output.say(f"{last} {told}", "green")
        for source in found.functions:
            if source.manifest.get("schedule"):
                output.note(f"  a tick of {source.name}, by hand: curl -X POST {self._own_url(source)}/_skerry/tick")

    def _own_url(self, source: FunctionSource) -> str:
        return f"http://{self._listen}/functions/{source.name}"

    def _url(self, source: FunctionSource) -> str:
        route = source.manifest.get("route") or {}
        also = ", ".join(f"{host}{route['path']}" for host in route.get("hosts") or [""]) if route else ""
        return self._own_url(source) + (f" (and {also})" if also else "")

    async def _ask(self, wanted: Json) -> Json:
        if not self._ready:
            await self._answers.get()
            self._ready = True
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101
        stdin.write(orjson.dumps(wanted) + b"\n")
        with contextlib.suppress(ConnectionError):  # `watch` raises EdgeEnded.
            await stdin.drain()
        return await self._answers.get()

    async def _start(self, *, fresh: bool) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_runtime.cli.main",
            "dev",
            *("--state", str(self._state), "--listen", self._listen),
            *(["--secrets", str(self._secrets)] if self._secrets is not None else []),
            *(["--fresh"] if fresh else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            # Ctrl-C is for this process; the edge exits when its stdin is closed, however this process ends.
            start_new_session=True,
        )

    def _close(self) -> None:
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()

    async def _stop(self) -> None:
        self._close()
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _show_call(told: Json) -> None:
    why = f"  {told['message']} [{told['code']}]" if told["code"] else ""
    style = "red" if told["status"] >= 500 else None
    output.say(f"{told['method']} {told['path']}  {told['status']}  {told['seconds'] * 1000:.1f} ms{why}", style)


@click.command()
@options.folder_argument
@click.option(
    "--listen",
    help=f"HOST:PORT to serve the functions on; without it the first of 127.0.0.1:{PORTS[0]}, {PORTS[1]}, … that is "
    "free.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the edge's files, its database among them, in this folder; without it they go at the end.",
)
@click.option(
    "--secrets",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with the values of its secrets, as a node has one; only you may be able to read it.",
)
@options.asynchronous
async def command(folder: Path, listen: str | None, state: Path | None, secrets: Path | None) -> None:
    """Serve the functions of the project in FOLDER (this one) here, and follow its files.

    They are built and swapped in at each change; where a build or a release fails, the version before serves on. Each
    call is shown with its time and what the function logged. Where a schema file that was applied has changed, the
    database is made again. The file of secrets is followed, too. Needs no control; Ctrl-C ends it.
    """
    options.end_once()
    found = project_files.read(folder)
    beside = [secrets] if secrets is not None else [state / SECRETS] if state is not None else []
    files = FollowedFiles(found.folders(), beside)
    if state is not None:
        # Before searching for its file of secrets.
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if state is None:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skerry-dev-")))
        if listen is None:
            listen = stack.enter_context(free_address())
        try:
            async with LocalEdge(state.absolute(), listen, secrets) as edge, asyncio.TaskGroup() as group:
                group.create_task(files.watch())
                group.create_task(edge.watch())
                await _follow(folder, edge, files, {path.absolute() for path in beside})
        except ExceptionGroup as several:
            raise several.exceptions[0] from None


async def _follow(folder: Path, edge: LocalEdge, files: FollowedFiles, secrets: set[Path]) -> None:
    """Build and release the project, again after each change, until cancelled. Changes to `secrets` need no build.

    Raises: EdgeEnded, when the edge exits by itself.
    """
    built: set[str] = set()
    while True:
        different = await files.different()
        try:
            if different:
                found = project_files.read(folder)
                built -= {source.name for source in found.concerned(different - secrets)}
                for source in found.functions:
                    if source.name not in built:
                        took = await toolchains.build(source, _secrets(source, secrets))
                        built.add(source.name)
                        output.say(f"{source.name}: built in {output.span(took)}")
                await edge.release(found)
        except EdgeEnded:
            raise
        except Failure as failed:
            # The next change of a file may fix it.
            output.failure(failed, as_json=False)
            if edge.serves:
                output.note("  the version before serves on")
        await files.changed()


def _secrets(source: FunctionSource, files: Iterable[Path]) -> dict[str, str]:
    """Return the function's secrets, which must not get into its module, as far as they can be read."""
    found: dict[str, str] = {}
    for file in files:
        # The edge says what is wrong with the file.
        with contextlib.suppress(OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError):
            table = tomllib.loads(file.read_text("utf-8")).get(source.name, {})
            found |= {name: value for name, value in table.items() if isinstance(value, str)}
    return found
