"""The edge runtime's own checks of modules and schema changes, so that control accepts what nodes accept.

They run in a child process, so that control never parses hostile input: the child has its own limits and fence
(`edge_runtime.oneshot.check`), a deadline, and almost nothing of control's environment. Uploads have their own queue;
in both queues operators take turns, so an operator with many checks doesn't delay the others. Results of schema checks
are cached, since they depend only on the changes' texts.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from control.problems import ProblemError

log = logging.getLogger("skerry.checks")

ANSWER_LIMIT = 1024 * 1024
"""The maximum bytes read of the child's answer, and of its stderr."""
EACH = 32
"""Maximum turns that one operator waits for."""
TOGETHER = 256
"""Maximum turns that all operators together wait for; beyond them, an operator who waits for none may wait for one."""
MOST_UPLOADS = EACH + 8
"""An operator's uploads in progress at once: as many as may wait for their checks, and some that are arriving."""
KEPT = 64
"""Maximum answers of checks in the cache."""
KEPT_BYTES = 8 * 1024 * 1024
"""Maximum total bytes of these answers."""
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "HOME", "XDG_CACHE_HOME")
"""What checks have of control's environment; the last two say where the engines of snapshots are kept."""
ENGINES_LIMIT = 3600.0
"""Maximum seconds for compiling the engines of snapshots, which goes on when nobody waits any more."""
SNAPSHOT_BYTES = 256 * 1024
"""Bytes of the smallest artifact that may be a snapshot (edge_runtime.aot_cache)."""


class CheckedChange(NamedTuple):
    """What the check of a schema change found."""

    warnings: list[dict[str, str]]
    """Statements that fail only on some rows, views and triggers that fail afterwards, tables on which it was tried
    without rows: a statement and a message each."""
    losses: list[dict[str, str]]
    """What nodes can lose because of it: a statement, a table and a message each."""
    stalls: list[dict[str, Any]]
    """What blocks writers on large tables: a statement, a table, a message and microseconds per row."""


class OperatorChecks:
    """The checks that one operator requests."""

    def __init__(self, checks: "Checks", operator: str) -> None:
        self._checks = checks
        self._operator = operator

    @contextlib.contextmanager
    def upload(self) -> Iterator[None]:
        """Count an upload until the block ends.

        Raises: ProblemError check_unavailable, when as many are in progress as could wait for their checks: their bytes
        are on control's disk, which all uploads share.
        """
        uploads = self._checks.uploads
        if uploads[self._operator] >= MOST_UPLOADS:
            raise _too_many("uploads are under way")
        uploads[self._operator] += 1
        try:
            yield
        finally:
            uploads[self._operator] -= 1
            uploads += Counter()  # without those that are 0

    async def module(self, file: Path, size_limit: int) -> dict[str, Any]:
        """Check the module in `file`; return what nodes need to know about it. Raises: ProblemError module_refused."""
        asked = ["module", str(file), "--size-limit", str(size_limit)]
        answer = await self._checks.run(self._operator, asked, b"", "module_refused")
        if not answer["ok"]:
            raise ProblemError("module_refused", f"{answer['message']} [{answer['code']}]")
        return answer

    async def schema(
        self, earlier: list[tuple[int, str]], sql: str, amends: tuple[int, str] | None = None
    ) -> CheckedChange:
        """Try a schema change after the `earlier` ones (number, SQL), or instead of the one that it amends.

        Raises: ProblemError schema_refused, with the statement that is wrong.
        """
        answer = await self._schema(_asked(earlier, sql, amends))
        if not answer["ok"]:
            statement = f" The statement: {answer['statement']}" if answer.get("statement") else ""
            raise ProblemError("schema_refused", f"{answer['message']} [{answer['code']}]{statement}", field="sql")
        return CheckedChange(answer["warnings"], answer["losses"], answer["stalls"])

    async def probes(
        self,
        earlier: list[tuple[int, str]],
        sql: str,
        amends: tuple[int, str] | None,
        probed: list[dict[str, Any]],
    ) -> list[dict[str, str]]:
        """Run probes of functions after a schema change, as `schema` takes it; return a warning for each that fails.

        `probed` has the name, version, manifest and artifact file of each function.
        """
        await self._checks.engines([Path(each["file"]) for each in probed])
        asked = {"change": _asked(earlier, sql, amends), "probes": probed}
        answer = await self._checks.run(self._operator, ["probes"], orjson.dumps(asked), "check_unavailable")
        return [
            {
                "statement": "",
                "message": f"the probe of {item['name']}@{item['version']} {item['message']}",
            }
            for item in answer["failing"]
        ]

    async def reversal(self, earlier: list[tuple[int, str]], number: int) -> tuple[str, list[dict[str, str]]]:
        """Draft a change that reverses change `number`, one of the `earlier` ones (number, SQL), after them all.

        Return its SQL, '' if nothing can be reversed, and the statements that can't be, with a message for each.
        """
        asked = {"earlier": [{"number": at, "sql": text} for at, text in earlier], "reverse": number}
        answer = await self._schema(asked)
        if not answer["ok"]:
            raise ProblemError("schema_refused", f"{answer['message']} [{answer['code']}]")
        return answer["reversal"], answer["kept"]

    async def _schema(self, asked: dict[str, Any]) -> dict[str, Any]:
        return await self._checks.run(self._operator, ["schema"], orjson.dumps(asked), "schema_refused")


class Checks:
    """Runs a few checks of uploads concurrently, and as many other checks; the rest wait for their turns."""

    def __init__(self, at_once: int, deadline: float) -> None:
        self._deadline = deadline
        self._uploads = FairTurns(at_once)
        self._others = FairTurns(at_once)
        self.uploads: Counter[str] = Counter()
        """Uploads in progress, by operator."""
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        """Answers as JSON, by the sha256 of the question; the most recently used one is at the end."""
        self._warned = False
        self._engines: asyncio.Task[None] | None = None
        """What compiles engines of snapshots, one at a time."""

    def of(self, operator: str) -> OperatorChecks:
        """Return the checks of an operator, by its id."""
        return OperatorChecks(self, operator)

    async def run(self, operator: str, arguments: list[str], stdin: bytes, refused: str) -> dict[str, Any]:
        """Return the answer of a check, which is cached if it depends only on `stdin`.

        Raises: ProblemError with the code `refused`, when it took too long or was killed; check_unavailable.
        """
        kind = arguments[0]
        key = hashlib.sha256(stdin).digest() if kind == "schema" else b""
        turns = self._uploads if kind == "module" else self._others
        found = self._look_up(key)
        if found is not None:
            return found
        try:
            async with turns.turn(operator):
                # Another request may have run the same check meanwhile.
                found = self._look_up(key)
                if found is None:
                    found = await self._child(arguments, stdin, refused)
                    if key and found["ok"]:
                        self._keep(key, found)
                return found
        except TooManyWaiting:
            raise _too_many("checks wait") from None

    async def engines(self, files: list[Path]) -> None:
        """Have the engines of snapshots among these artifacts compiled, for the checks that run probes: they don't try
        a snapshot without its engine. Return when that is done, or after the deadline of a check; it then goes on."""
        asked = [str(file) for file in files if file.stat().st_size >= SNAPSHOT_BYTES]
        if asked and (self._engines is None or self._engines.done()):
            self._engines = asyncio.create_task(self._compile_engines(asked))
        if asked and self._engines is not None:
            await asyncio.wait([self._engines], timeout=self._deadline)

    async def _compile_engines(self, files: list[str]) -> None:
        try:
            answer = await self._child(
                ["engines"], orjson.dumps({"files": files}), "check_unavailable", deadline=ENGINES_LIMIT
            )
        except ProblemError as problem:
            log.warning("engines of snapshots couldn't be compiled for probes: %s", problem.detail)
        else:
            for failed in answer["failed"]:
                log.warning("engines of snapshots couldn't be compiled for probes: %.1000s", failed)

    def _look_up(self, key: bytes) -> dict[str, Any] | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        answer: dict[str, Any] = orjson.loads(kept)
        return answer

    def _keep(self, key: bytes, answer: dict[str, Any]) -> None:
        self._kept[key] = orjson.dumps(answer)
        while len(self._kept) > KEPT or sum(map(len, self._kept.values())) > KEPT_BYTES:
            self._kept.popitem(last=False)

    async def _child(
        self, arguments: list[str], stdin: bytes, refused: str, deadline: float | None = None
    ) -> dict[str, Any]:
        setting = " (SKERRY_CHECK_TIMEOUT)" if deadline is None else ""
        deadline = self._deadline if deadline is None else deadline
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_runtime.oneshot.check",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(deadline):
                out, err = await _communicate(child, stdin)
        except TimeoutError:
            raise ProblemError(refused, f"its check took more than {deadline:.0f} s{setting}, and was ended") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            # Read the pipes to their ends, so that they are closed.
            await child.communicate()
        if child.returncode == 0:
            with contextlib.suppress(orjson.JSONDecodeError):
                answer = orjson.loads(out)
                if isinstance(answer, dict) and "ok" in answer:
                    self._warn(answer.pop("unfenced", None))
                    return answer
        if child.returncode is not None and child.returncode < 0:
            number = -child.returncode
            why = (
                "it made a system call that no check makes"
                if number == signal.SIGSYS
                else "it needs more memory or time than a check may have"
            )
            raise ProblemError(refused, f"its check was ended by signal {number}: {why}")
        last = err.decode(errors="replace").strip().rpartition("\n")[2][:500]
        raise ProblemError("check_unavailable", f"the check itself failed (status {child.returncode}): {last}")

    def _warn(self, unfenced: Any) -> None:
        if unfenced and not self._warned:
            self._warned = True
            log.warning("checks of uploads run without a part of their fence: %.1000s", unfenced)


def _too_many(what: str) -> ProblemError:
    return ProblemError(
        "check_unavailable", f"as many of your {what} as may; try again when they are done", retry_after=5
    )


def _asked(earlier: list[tuple[int, str]], sql: str, amends: tuple[int, str] | None) -> dict[str, Any]:
    return {
        "earlier": [{"number": number, "sql": text} for number, text in earlier],
        "sql": sql,
        "amends": None if amends is None else {"number": amends[0], "sql": amends[1]},
    }


async def _communicate(child: asyncio.subprocess.Process, stdin: bytes) -> tuple[bytes, bytes]:
    """Return the child's stdout and stderr, up to `ANSWER_LIMIT` bytes of each."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None  # noqa: S101, PT018

    async def read(stream: asyncio.StreamReader) -> bytes:
        found = b""
        while piece := await stream.read(65_536):
            found += piece[: ANSWER_LIMIT - len(found)]
        return found

    async with asyncio.TaskGroup() as group:
        out, err = group.create_task(read(child.stdout)), group.create_task(read(child.stderr))
        # A child may exit before it has read its stdin: uvloop then refuses to write at all.
        if not child.stdin.is_closing():
            child.stdin.write(stdin)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await child.stdin.drain()
        child.stdin.close()
    await child.wait()
    return out.result(), err.result()


class TooManyWaiting(Exception):
    """As many as allowed are already waiting."""


class FairTurns:
    """A limited number of concurrent turns, shared fairly: a caller who wants many turns delays nobody else."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Who is waiting, in the order of their next turns."""

    @contextlib.asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it until the block ends. Raises: TooManyWaiting."""
        await self._begin(who)
        try:
            yield
        finally:
            self._end()

    async def _begin(self, who: str) -> None:
        if self._free:
            self._free -= 1
            return
        own = len(self._waiting.get(who, ()))
        if own >= EACH or (own and sum(map(len, self._waiting.values())) >= TOGETHER):
            raise TooManyWaiting
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(who, turn)
            else:
                self._end()  # the turn was given meanwhile
            raise

    def _leave(self, who: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(who)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[who]

    def _end(self) -> None:
        """Give the turn to the next one that still waits."""
        while self._waiting:
            who, line = next(iter(self._waiting.items()))
            turn = line.popleft()
            if line:
                self._waiting.move_to_end(who)
            else:
                del self._waiting[who]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
