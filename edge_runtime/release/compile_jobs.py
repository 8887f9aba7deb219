"""Has artifacts compiled by child processes, and snapshots split into engines and images.

Callers that ask for an artifact that is being compiled wait for the same job. A job that has begun runs until it
finishes, even if nobody waits for it any more, so each sync attempt and each startup gets further than the one before.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Coroutine, Set
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec

from edge_runtime.aot_cache import (
    BEST,
    QUICK,
    AotFile,
    ImageFile,
    SplitRecord,
    engine_file,
    forget_split,
    install,
    keep_split,
    key,
    put_on_disk,
    remove,
    work_folder,
)
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient
from edge_runtime.settings import processors

log = logging.getLogger("skerry.compiler")

TRIES: Final = 3
"""Compilers that may die before the artifact is to blame: the zygote may have been replaced meanwhile."""
BEST_LIMIT: Final = 3600.0
"""Seconds for one artifact in the background."""
ENGINE_LIMIT: Final = "SKERRY_EDGE_ENGINE_COMPILE_LIMIT"
"""The setting that limits the compilation of an engine that somebody waits for."""
SPLIT_LIMIT: Final = 60.0
"""Seconds for splitting one artifact: 14 MB take 0.2 s."""

_decode_compiled: Final = msgspec.json.Decoder(frames.Compiled).decode
_decode_split: Final = msgspec.json.Decoder(frames.SplitUp).decode

T = TypeVar("T")


class _Job:
    def __init__(self, *, background: bool) -> None:
        self.background = background
        self.started = False
        self.waiters = 0
        self.task: asyncio.Task[AotFile]


class _Module(NamedTuple):
    """What is to be compiled: an artifact, or an engine."""

    sha256: str
    path: Path
    level: int
    what: str
    """Its name in errors."""
    limit: float
    """Seconds for it, if somebody waits."""
    setting: str
    """The setting that has this limit."""


class CompileJobs:
    def __init__(
        self,
        artifacts: Path,
        folder: Path,
        processes: ZygoteClient,
        limit: float,
        named: Callable[[str], str] = "artifact {}".format,
        engine_limit: float = BEST_LIMIT,
    ) -> None:
        """`folder`: the private cache of AOT files; `limit`: seconds for one artifact that somebody waits for; `named`
        returns the log's name for an artifact; `engine_limit`: seconds for an engine that somebody waits for."""
        self._named = named
        self._artifacts = artifacts
        self._folder = folder
        self._processes = processes
        self._limit = limit
        self._engine_limit = engine_limit
        self._turns = asyncio.Semaphore(processors())
        """Limits how many awaited jobs run at the same time. Background jobs run one at a time anyway."""
        self._split_turns = asyncio.Semaphore(processors())
        """Likewise for splitting: a module that isn't a snapshot must not wait long for the interpreter."""
        self._jobs: dict[tuple[str, int], _Job] = {}
        self._splits: dict[tuple[str, bool], asyncio.Task[ImageFile | None]] = {}
        """By artifact, and whether in the background: those that are being split."""
        self._written: dict[str, asyncio.Task[OSError | None]] = {}
        """By artifact: compiled code handed to those that waited, which isn't on disk yet or can't be written."""

    async def make(self, sha256: str, level: int, *, background: bool) -> AotFile:
        """Compile an artifact, or wait for the job that does it. Raises: SyncFailed, when it can't be compiled."""
        path = self._artifacts / f"{sha256}.wasm"
        what = f"artifact {sha256}"
        module = _Module(sha256, path, level, what, self._limit, "SKERRY_EDGE_COMPILE_LIMIT")
        return await self._make(module, background=background)

    async def make_engine(self, sha256: str, image: ImageFile, *, background: bool) -> AotFile:
        """Likewise compile the engine of an artifact that was split; its AOT file is on disk when this returns."""
        path = engine_file(self._folder, image.engine)
        what = f"the engine of {self._named(sha256)}"
        module = _Module(image.engine, path, BEST, what, self._engine_limit, ENGINE_LIMIT)
        try:
            aot = await self._make(module, background=background)
        except SyncFailed as failed:
            if failed.code == "artifact_lost":
                # The artifact is split again at the next try.
                await asyncio.to_thread(forget_split, self._folder, sha256)
                raise _unwritten(what, failed.message) from None
            raise
        return dataclasses.replace(aot, image=image)

    async def split(self, sha256: str, *, background: bool) -> ImageFile | None:
        """Split an artifact, or wait for the job that does it; return None if it stays whole.

        Raises: SyncFailed, when it can't be read or written.
        """
        name = sha256, background
        task = self._splits.get(name)
        if task is None:
            task = self._splits[name] = asyncio.get_running_loop().create_task(self._split(sha256, background))
            task.add_done_callback(lambda _: self._splits.pop(name))
        return await asyncio.shield(task)

    async def _make(self, module: _Module, *, background: bool) -> AotFile:
        """Raises: SyncFailed."""
        name = module.sha256, module.level
        job = self._jobs.get(name)
        if job is not None and job.background and not background and not job.waiters:
            # It was begun for a rehearsal that a sync has ended, and may take long where the processors are busy.
            job.task.cancel()
            job = None
        if job is None:
            job = self._jobs[name] = _Job(background=background)
            job.task = asyncio.get_running_loop().create_task(self._run(job, module))
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
                raise _unwritten(f"artifact {sha256}", error)

    async def run(self) -> None:
        """Let jobs run until cancelled; then abandon them."""
        try:
            await asyncio.Event().wait()
        finally:
            tasks = [*(job.task for job in self._jobs.values()), *self._splits.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, name: tuple[str, int], job: _Job) -> None:
        if self._jobs.get(name) is job:
            del self._jobs[name]
        if not job.task.cancelled() and (error := job.task.exception()) is not None and not job.waiters:
            log.warning("%s: %s", self._named(name[0]), error)

    async def _run(self, job: _Job, module: _Module) -> AotFile:
        """Raises: SyncFailed."""
        async with contextlib.nullcontext() if job.background else self._turns:
            job.started = True
            return await self._with_child(
                lambda child, work: self._compile(child, work, module, job.background), module.what, job.background
            )

    async def _split(self, sha256: str, background: bool) -> ImageFile | None:
        """Raises: SyncFailed."""
        what = f"artifact {sha256}"
        order = str(self._artifacts / f"{sha256}.wasm"), sha256

        async def ask(child: Child, work: Path) -> ImageFile | None:
            try:
                reply = await child.ask(frames.SPLIT, frames.SplitOrder(*order, str(work)), SPLIT_LIMIT)
            except TimeoutError:
                raise SyncFailed("compile_timeout", f"{what} wasn't split after {SPLIT_LIMIT:g} s") from None
            child.give_way()
            if reply.kind == frames.FAILED:
                raise _failed(what, reply)
            told = frames.told(reply, frames.SPLIT_UP, _decode_split)
            if not told.engine or not told.digest:
                return None
            made = SplitRecord(told.engine, told.digest, told.pages)
            try:
                return await asyncio.to_thread(keep_split, work, self._folder, sha256, made)
            except OSError as error:
                raise _unwritten(what, error) from None

        async with contextlib.nullcontext() if background else self._split_turns:
            return await self._with_child(ask, what, background)

    async def _with_child(
        self, ask: Callable[[Child, Path], Coroutine[None, None, T]], what: str, background: bool
    ) -> T:
        """Have a compiler do something in a work folder of its own. Raises: SyncFailed."""
        for attempt in range(1, TRIES + 1):
            try:
                child = await self._processes.birth("compiler", background=background)
                # The child creates it: a hanging disk must not block the event loop, and a thread would add a wait.
                work = work_folder(self._folder)
                try:
                    with contextlib.closing(child):
                        return await ask(child, work)
                finally:
                    # Not before the child has exited, as it may still write there.
                    child.exited.add_done_callback(functools.partial(_remove, work))
            except NotBorn as error:
                if attempt == TRIES:
                    text = f"{what} wasn't compiled: there was no process for it: {error}"
                    raise SyncFailed("no_process", text) from None
            except frames.ChildGone as error:
                if attempt == TRIES:
                    raise SyncFailed(
                        "compile_crashed", f"the compiler died of {what}, {attempt} times: {error}"
                    ) from None
        raise AssertionError

    async def _compile(self, child: Child, work: Path, module: _Module, background: bool) -> AotFile:
        """Raises: ChildGone, SyncFailed."""
        sha256, path, level, what, limit, setting = module
        limit, setting = (BEST_LIMIT, "") if background else (limit, f", which {setting} allows")
        try:
            reply = await child.ask(frames.COMPILE, frames.Compile(str(path), sha256, str(work), level), limit)
        except TimeoutError:
            raise SyncFailed("compile_timeout", f"{what} wasn't compiled after {limit:g} s{setting}") from None
        child.give_way()
        if reply.kind == frames.FAILED:
            raise _failed(what, reply)
        digest = frames.told(reply, frames.COMPILED, _decode_compiled).digest
        # A release goes on while code at the level QUICK is written to disk, and waits for it before its COMMIT.
        later = level == QUICK and not background
        try:
            await asyncio.to_thread(install, work, self._folder, sha256, level)
            if not later:
                await asyncio.to_thread(self._written_or_removed, sha256, level)
        except OSError as error:
            raise _unwritten(what, error) from None
        if later:
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


def _remove(work: Path, _: object) -> None:
    """Remove a work folder, in a thread, since a hanging disk must not block the event loop. Leftovers are removed at
    the next startup."""
    asyncio.get_running_loop().run_in_executor(None, functools.partial(shutil.rmtree, work, ignore_errors=True))


def _failed(what: str, reply: frames.Frame) -> SyncFailed:
    """Return the failure that a compiler has told."""
    failure = frames.decode_failure(reply.body)
    if failure.code == "compile_io":
        return _unwritten(what, failure.message)
    return SyncFailed(failure.code, f"{what} can't be compiled: {failure.message}")


def _unwritten(what: str, error: OSError | str) -> SyncFailed:
    return SyncFailed("compile_io", f"compiled code of {what} can't be written: {error}; look at the disk")
