"""`skerry dev`: a function's project on an edge of its own, which follows the project's files."""

import asyncio
import contextlib
import hashlib
import signal
import sys
import tempfile
from pathlib import Path
from typing import Self

import click
import orjson
import watchfiles

from control.cli.support import options, output, project, toolchains
from control.cli.support.client import Failure, Json
from control.cli.support.project import Project

LISTEN = "127.0.0.1:8088"
STEP = 20
"""Milliseconds without another change after which changes count as one."""
STOP_LIMIT = 15.0
"""Seconds that the edge has to end before it is killed."""
LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of the longest line that is read from the edge: a function may log much in one."""
BUILT = ("node_modules", "target", "zig-out", ".zig-cache")
"""Folders that builds write, besides the hidden ones; changes in them start no build."""
MADE = (".wasm", ".o")
"""Endings of files that builds write."""


@click.command()
@click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", metavar="[FOLDER]"
)
@click.option("--listen", default=LISTEN, show_default=True, help="HOST:PORT to serve the function on.")
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
async def command(folder: Path, listen: str, state: Path | None, secrets: Path | None) -> None:
    """Serve the function in FOLDER (this one) here, and follow its files.

    It is built and swapped in at each change; where a build or a release fails, the version before serves on. Each call
    is shown with its time and what the function logged. Where a schema file that was applied has changed, the database
    is made again. Needs no control; Ctrl-C ends it.
    """
    running = asyncio.current_task()
    assert running is not None  # noqa: S101
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    project.read(folder)
    with contextlib.ExitStack() as stack:
        if state is None:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skerry-dev-")))
        try:
            async with Edge(state.absolute(), listen, secrets) as edge, asyncio.TaskGroup() as group:
                changed = asyncio.Event()
                group.create_task(_watch(folder, changed))
                group.create_task(edge.watch())
                await _follow(folder, edge, changed)
        except ExceptionGroup as several:
            raise several.exceptions[0] from None


async def _watch(folder: Path, changed: asyncio.Event) -> None:
    """Set `changed` whenever a file in the folder changes, until cancelled."""
    ours = watchfiles.DefaultFilter(ignore_dirs=(*watchfiles.DefaultFilter.ignore_dirs, *BUILT))
    async for _ in watchfiles.awatch(folder, step=STEP, watch_filter=ours):
        changed.set()


async def _follow(folder: Path, edge: "Edge", changed: asyncio.Event) -> None:
    """Build and release the project, again after each change, until cancelled.

    Raises: EdgeEnded, when the edge ends by itself.
    """
    seen: dict[Path, bytes] = {}
    built = False
    while True:
        changed.clear()
        now = await asyncio.to_thread(_files, folder)
        different = {path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path)}
        seen = now
        try:
            if different:
                found = project.read(folder)
                if not built or any(found.schema is None or found.schema not in path.parents for path in different):
                    built = False
                    took = await toolchains.build(found)
                    built = True
                    output.say(f"built in {output.span(took)}")
                await edge.release(found)
        except EdgeEnded:
            raise
        except Failure as failed:
            # The next change of a file may cure it.
            output.failure(failed, as_json=False)
            if edge.serves:
                output.note("  the version before serves on")
        await changed.wait()


def _files(folder: Path) -> dict[Path, bytes]:
    """The SHA-256 of each file of the project by its path, without the files that builds write."""
    found = {}
    for path, folders, names in folder.walk():
        folders[:] = [name for name in folders if not name.startswith(".") and name not in BUILT]
        for name in names:
            if not name.startswith(".") and not name.endswith(MADE):
                with contextlib.suppress(OSError):
                    found[path / name] = hashlib.sha256((path / name).read_bytes()).digest()
    return found


class EdgeEnded(Failure):
    """The local edge ended by itself."""


class Edge:
    """`skerry-edge dev` as a child process, an asynchronous context manager.

    The child reads what it is to serve from stdin, a JSON object a line, and writes calls, logs and answers to stdout.
    """

    def __init__(self, state: Path, listen: str, secrets: Path | None) -> None:
        self._state = state
        self._secrets = secrets
        self._listen = listen
        self._process: asyncio.subprocess.Process
        self._answers: asyncio.Queue[Json] = asyncio.Queue()
        self._ready = False
        self._fresh = False
        """Whether the edge, once it has ended, is started again with a new database."""
        self.serves = False
        """Whether a version of the function is being served."""

    async def __aenter__(self) -> Self:
        await self._start(fresh=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def watch(self) -> None:
        """Show the edge's calls and logs, until cancelled.

        Raises: EdgeEnded, when the edge ends by itself.
        """
        while True:
            process = self._process
            assert process.stdout is not None  # noqa: S101
            while line := await process.stdout.readline():
                told = orjson.loads(line)
                if told["event"] == "call":
                    _show_call(told)
                elif told["event"] == "log":
                    output.say(f"  | {told['text']}", style="dim")
                else:
                    self._answers.put_nowait(told)
            status = await process.wait()
            if not self._fresh:
                raise EdgeEnded(f"the local edge has ended with status {status}; above is what it said")
            self._fresh = False
            await self._start(fresh=True)

    async def release(self, found: Project) -> None:
        """Have the edge serve the project's module and schema, as they are now.

        Raises: Failure, when the edge can't serve them; it says why.
        """
        changes = [{"number": c.number, "name": c.name, "sql": c.sql} for c in found.changes()]
        wanted = {"name": found.name, "module": str(found.module.absolute()), "manifest": found.manifest}
        answer = await self._ask({**wanted, "changes": changes})
        if answer["event"] == "outdated":
            output.say(f"{answer['message']}: the database is made again", style="yellow")
            self._fresh, self._ready, self.serves = True, False, False
            self._close()
            answer = await self._ask({**wanted, "changes": changes})
        if answer["event"] != "serving":
            raise Failure(answer["message"], code=answer.get("code", ""))
        self.serves = True
        route = (found.manifest.get("route") or {}).get("path", "")
        url = f"http://{self._listen}/functions/{found.name}" + (f" (and {route})" if route else "")
        output.say(f"{url} serves it, {answer['seconds'] * 1000:.0f} ms later (schema {answer['schema']})", "green")

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
            # Ctrl-C is for this process; the edge ends when its stdin is closed, however this process ends.
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
