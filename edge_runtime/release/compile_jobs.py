"""Has artifacts compiled by child processes.

Callers that ask for an artifact that is being compiled wait for the same job. A job that has begun runs until it
finishes, even if nobody waits for it any more, so each sync attempt and each startup gets further than the one before.
"""

import asyncio
import contextlib
import functools
import logging
import shutil
from collections.abc import Callable, Set
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.aot_cache import QUICK, AotFile, install, key, put_on_disk, remove, work_folder
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient
from edge_runtime.settings import processors

log = logging.getLogger("skerry.compiler")

TRIES: Final = 3
"""Compilers that may die before the artifact is to blame: the zygote may have been replaced meanwhile."""
BEST_LIMIT: Final = 3600.0
"""Seconds for one artifact in the background."""

_decode_compiled: Final = msgspec.json.Decoder(frames.Compiled).decode


class _Job:
    def __init__(self, *, background: bool) -> None:
        self.background = background
        self.started = False
        self.waiters = 0
        self.task: asyncio.Task[AotFile]


class CompileJobs:
    def __init__(
        self,
        artifacts: Path,
        folder: Path,
        processes: ZygoteClient,
        limit: float,
        named: Callable[[str], str] = "artifact {}".format,
    ) -> None:
        """`folder`: the private cache of AOT files; `limit`: seconds for one artifact that somebody waits for; `named`
        returns the log's name for an artifact."""
        self._named = named
        self._artifacts = artifacts
        self._folder = folder
        self._processes = processes
        self._limit = limit
        self._turns = asyncio.Semaphore(processors())
        """Limits how many awaited jobs run at the same time. Background jobs run one at a time anyway."""
        self._jobs: dict[tuple[str, int], _Job] = {}
        self._written: dict[str, asyncio.Task[OSError | None]] = {}
        """By artifact: compiled code handed to those that waited, which isn't on disk yet or can't be written."""

    async def make(self, sha256: str, level: int, *, background: bool) -> AotFile:
        """Compile an artifact, or wait for the job that does it. Raises: SyncFailed, when it can't be compiled."""
        name = sha256, level
        job = self._jobs.get(name)
        if job is not None and job.background and not background and not job.waiters:
            # It was begun for a rehearsal that a sync has ended, and may take long where the processors are busy.
            job.task.cancel()
            job = None
        if job is None:
            job = self._jobs[name] = _Job(background=background)
            job.task = asyncio.get_running_loop().create_task(self._run(job, sha256, level))
            job.task.add_done_callback(lambda _: self._ended(name, job))
        job.waiters += 1
        try:
            return await asyncio.shield(job.task)
        finally:
            job.waiters -= 1
            if not job.waiters and not job.started and not job.task.done():
                # The job has done nothing yet, and would delay others that are waited for.
                del self._jobs[name]
                job.task.cancel()

    async def on_disk(self, wanted: Set[str]) -> None:
        """Wait until the compiled code of the artifacts `wanted` is on disk. Raises: SyncFailed, when it can't be."""
        for sha256 in wanted:
            writing = self._written.get(sha256)
            if writing is not None and (error := await asyncio.shield(writing)) is not None:
                self._written.pop(sha256, None)
                await asyncio.to_thread(remove, self._folder, sha256, QUICK)
                raise _unwritten(sha256, error)

    async def run(self) -> None:
        """Let jobs run until cancelled; then abandon them."""
        try:
            await asyncio.Event().wait()
        finally:
            tasks = [job.task for job in self._jobs.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, name: tuple[str, int], job: _Job) -> None:
        if self._jobs.get(name) is job:
            del self._jobs[name]
        if not job.task.cancelled() and (error := job.task.exception()) is not None and not job.waiters:
            log.warning("%s: %s", self._named(name[0]), error)

    async def _run(self, job: _Job, sha256: str, level: int) -> AotFile:
        """Raises: SyncFailed."""
        async with contextlib.nullcontext() if job.background else self._turns:
            job.started = True
            for attempt in range(1, TRIES + 1):
                try:
                    return await self._child(sha256, level, job.background)
                except NotBorn as error:
                    if attempt == TRIES:
                        text = f"artifact {sha256} wasn't compiled: there was no process for it: {error}"
                        raise SyncFailed("no_process", text) from None
                except frames.ChildGone as error:
                    if attempt == TRIES:
                        text = f"the compiler died of artifact {sha256}, {attempt} times: {error}"
                        raise SyncFailed("compile_crashed", text) from None
        raise AssertionError

    async def _child(self, sha256: str, level: int, background: bool) -> AotFile:
        """Raises: NotBorn, ChildGone, SyncFailed."""
        child = await self._processes.birth("compiler", background=background)
        # The child creates it: a hanging disk must not block the event loop, and a thread would add a wait.
        work = work_folder(self._folder)
        try:
            with contextlib.closing(child):
                return await self._ask(child, work, sha256, level, background)
        finally:
            # Not before the child has exited, as it may still write there.
            child.exited.add_done_callback(lambda _: _remove(work))

    async def _ask(self, child: Child, work: Path, sha256: str, level: int, background: bool) -> AotFile:
        limit = BEST_LIMIT if background else self._limit
        path = self._artifacts / f"{sha256}.wasm"
        try:
            reply = await child.ask(frames.COMPILE, frames.Compile(str(path), sha256, str(work), level), limit)
        except TimeoutError:
            text = f"artifact {sha256} wasn't compiled after {limit:g} s (compile_limit)"
            raise SyncFailed("compile_timeout", text) from None
        child.give_way()
        if reply.kind == frames.FAILED:
            failure = frames.decode_failure(reply.body)
            if failure.code == "compile_io":
                raise _unwritten(sha256, failure.message)
            raise SyncFailed(failure.code, f"artifact {sha256} can't be compiled: {failure.message}")
        digest = frames.told(reply, frames.COMPILED, _decode_compiled).digest
        try:
            await asyncio.to_thread(install, work, self._folder, sha256, level)
            if background:
                await asyncio.to_thread(self._written_or_removed, sha256, level)
        except OSError as error:
            raise _unwritten(sha256, error) from None
        if not background:
            # A release goes on meanwhile, and waits for it before its COMMIT. All of those are at the level QUICK.
            self._written[sha256] = asyncio.get_running_loop().create_task(self._write(sha256))
        return AotFile(self._folder / f"{key(sha256, level)}.so", digest)

    def _written_or_removed(self, sha256: str, level: int) -> None:
        """Raises: OSError."""
        try:
            put_on_disk(self._folder, sha256, level)
        except OSError:
            remove(self._folder, sha256, level)
            raise

    async def _write(self, sha256: str) -> OSError | None:
        """Put compiled code on disk; return why that can't be done."""
        try:
            await asyncio.to_thread(put_on_disk, self._folder, sha256, QUICK)
        except OSError as error:
            return error
        if self._written.get(sha256) is asyncio.current_task():
            del self._written[sha256]
        return None


def _remove(work: Path) -> None:
    """Remove a work folder, in a thread, since a hanging disk must not block the event loop. Leftovers are removed at
    the next startup."""
    asyncio.get_running_loop().run_in_executor(None, functools.partial(shutil.rmtree, work, ignore_errors=True))


def _unwritten(sha256: str, error: OSError | str) -> SyncFailed:
    return SyncFailed("compile_io", f"compiled code of artifact {sha256} can't be written: {error}; look at the disk")
