"""AOT files for artifacts: compiled by children, quickly first so that a function can serve, then best in the
background. A new function doesn't wait for them long: it starts on the interpreter (docs/adr/0008)."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Set
from pathlib import Path
from typing import Final

import msgspec

from . import frames
from .frames import LocalFunction
from .processes import Child, NotBorn, Processes, decode_failure
from .settings import processors
from .steps import SyncFailed
from .wasmedge import BEST, QUICK, AotFile, Damaged, find, verify
from .wasmedge.compile import key, take, workshop

log = logging.getLogger("skerry.compiler")

TRIES: Final = 3
"""For a compiler that dies: the zygote may have been replaced; then the artifact is to blame."""
BEST_LIMIT: Final = 3600.0

_decode_compiled: Final = msgspec.json.Decoder(frames.Compiled).decode


class Compiler:
    def __init__(self, artifacts: Path, folder: Path, processes: Processes, limit: float, wait: float) -> None:
        """`folder`: the private cache of AOT files; `limit`: seconds for one artifact at the quick level; `wait`:
        seconds after which a new function starts without."""
        self._artifacts = artifacts
        self._folder = folder
        self._processes = processes
        self._limit = limit
        self._wait = wait
        self.best = BEST
        """The level that functions get to in the background."""
        self._quick = asyncio.Semaphore(processors())
        self._known: dict[tuple[str, int], AotFile] = {}
        """Files that were found or made, and checked, since the start."""
        self._damaged: set[str] = set()
        """Artifacts with a file that a worker couldn't load: they are made again."""
        self._hopeless: set[str] = set()
        """Artifacts that a level failed on: they stay at what they have until a sync, or the node's next start."""
        self.lost: set[str] = set()
        """Artifacts that were to be compiled, and aren't whole on disk: to be fetched again."""

    async def functions(self, planned: list[LocalFunction], compiled: Set[str] = frozenset()) -> list[LocalFunction]:
        """The same functions with what to start on. Those whose names are in `compiled`, which serve compiled code now,
        wait for theirs; the others only for a moment. Error: `SyncFailed`."""
        return await self._start(planned, {f.sha256 for f in planned if f.name in compiled}, lenient=False)

    async def available(self, stored: list[LocalFunction]) -> list[LocalFunction]:
        """The same functions; those that nothing can be made of can't be called, the others can."""
        return await self._start(stored, frozenset(), lenient=True)

    async def compile(self, sha256: str, level: int, *, background: bool = False) -> AotFile:
        """Compile one artifact in a child, or find what was compiled before. Error: `SyncFailed`."""
        found = await self._find(sha256, level)
        if found is not None:
            return found
        for attempt in range(1, TRIES + 1):
            try:
                made = await self._child(sha256, level, background)
            except (NotBorn, frames.ChildGone) as error:
                if attempt == TRIES:
                    text = f"the compiler died of artifact {sha256}, {attempt} times: {error}"
                    raise SyncFailed("compile_crashed", text) from None
                continue
            self._known[sha256, level] = made
            return made
        raise AssertionError

    async def improve(self, release: frames.LocalRelease) -> list[LocalFunction]:
        """The release's functions, one of them with better code: to be called until there is none better."""
        for function in release.functions:
            if function.sha256 in self._hopeless or self.is_best(function):
                continue
            self._damaged.discard(function.sha256)
            level, now = (self.best, "at the quick level") if function.aot else (QUICK, "on the interpreter")
            try:
                better = await self.compile(function.sha256, level, background=level == BEST)
            except SyncFailed as failed:
                log.warning("%s stays %s: %s", function.name, now, failed.message)
                self._hopeless.add(function.sha256)
                continue
            return [with_aot(f, better) if f.sha256 == function.sha256 else f for f in release.functions]
        return release.functions

    def damaged(self, sha256: str) -> bool:
        """A worker found an AOT file of this artifact damaged: look at what is on disk again. Whether `improve` can do
        something about it."""
        if sha256 in self._hopeless:
            return False
        self._damaged.add(sha256)
        for level in (QUICK, BEST):
            self._known.pop((sha256, level), None)
        return True

    def collect(self, keep: set[str]) -> None:
        """Remove the AOT files of all artifacts but those of `keep` (sha256)."""
        names = {key(sha256, level) for sha256 in keep for level in (QUICK, BEST)}
        for path in self._folder.iterdir():
            if path.suffix in (".so", ".sha256") and path.stem not in names:
                path.unlink(missing_ok=True)
        for known in [k for k in self._known if k[0] not in keep]:
            self._known.pop(known, None)

    def is_best(self, function: LocalFunction) -> bool:
        """Whether it runs what was compiled at the best level."""
        return function.sha256 not in self._damaged and function.aot == str(
            self._folder / f"{key(function.sha256, self.best)}.so"
        )

    async def _start(self, planned: list[LocalFunction], patient: Set[str], *, lenient: bool) -> list[LocalFunction]:
        """`patient`: artifacts that wait for their files."""
        self._hopeless -= {f.sha256 for f in planned}
        deadline = asyncio.get_running_loop().time() + self._wait
        made: dict[str, AotFile | Path] = {}
        """What to start on, by artifact."""

        async def one(sha256: str) -> None:
            try:
                best = await self._find(sha256, BEST)
                made[sha256] = best or await self._quickly(sha256, None if sha256 in patient else deadline)
            except SyncFailed as failed:
                if not lenient:
                    raise
                log.error("artifact %s can't be served: %s", sha256, failed.message)

        try:
            async with asyncio.TaskGroup() as group:
                for sha256 in sorted({f.sha256 for f in planned}):
                    group.create_task(one(sha256))
        except* SyncFailed as several:
            failure: BaseException = several
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
        else:
            return [_on(f, made.get(f.sha256)) for f in planned]
        raise failure

    async def _quickly(self, sha256: str, deadline: float | None) -> AotFile | Path:
        """What a function starts on: the artifact itself, where compiling it takes longer. Error: SyncFailed."""
        try:
            async with asyncio.timeout_at(deadline), self._quick:
                return await self.compile(sha256, QUICK)
        except TimeoutError:
            path = self._artifacts / f"{sha256}.wasm"
        try:
            await asyncio.to_thread(verify, path, sha256)
        except (Damaged, OSError) as error:
            self.lost.add(sha256)
            raise SyncFailed("artifact_lost", str(error)) from None
        log.info("artifact %s starts on the interpreter: it takes long to compile", sha256)
        return path

    async def _find(self, sha256: str, level: int) -> AotFile | None:
        known = self._known.get((sha256, level))
        if known is None:
            # It reads the whole file to check it.
            known = await asyncio.to_thread(find, self._folder, sha256, level)
            if known is not None:
                self._known[sha256, level] = known
        return known

    async def _child(self, sha256: str, level: int, background: bool) -> AotFile:
        """Errors: NotBorn, ChildGone, SyncFailed."""
        try:
            work = await asyncio.to_thread(workshop, self._folder)
        except OSError as error:
            raise SyncFailed("compile_io", str(error)) from None
        try:
            child = await self._processes.birth("compiler", background=background)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        try:
            with contextlib.closing(child):
                return await self._ask(child, work, sha256, level, background)
        finally:
            # Not before the child's end: it may be at it.
            child.exited.add_done_callback(lambda _: shutil.rmtree(work, ignore_errors=True))

    async def _ask(self, child: Child, work: Path, sha256: str, level: int, background: bool) -> AotFile:
        limit = BEST_LIMIT if background else self._limit
        path = self._artifacts / f"{sha256}.wasm"
        try:
            reply = await child.ask(frames.COMPILE, frames.Compile(str(path), sha256, str(work), level), limit)
        except TimeoutError:
            text = f"artifact {sha256} wasn't compiled after {limit:g} s (compile_limit)"
            raise SyncFailed("compile_timeout", text) from None
        if reply.kind == frames.FAILED:
            failure = decode_failure(reply.body)
            if failure.code == "artifact_lost":
                self.lost.add(sha256)
            raise SyncFailed(failure.code, failure.message)
        try:
            await asyncio.to_thread(take, work, self._folder, sha256, level)
        except OSError as error:
            raise SyncFailed("compile_io", str(error)) from None
        return AotFile(self._folder / f"{key(sha256, level)}.so", _decode_compiled(reply.body).digest)


def _on(function: LocalFunction, code: AotFile | Path | None) -> LocalFunction:
    """The function with what it starts on: an AOT file, its wasm, or nothing."""
    if isinstance(code, AotFile):
        return with_aot(function, code)
    return msgspec.structs.replace(function, wasm="" if code is None else str(code), aot="", aot_digest="")


def with_aot(function: LocalFunction, aot: AotFile) -> LocalFunction:
    return msgspec.structs.replace(function, aot=str(aot.path), aot_digest=aot.digest)
