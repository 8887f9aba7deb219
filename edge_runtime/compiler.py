"""AOT files for artifacts: compiled by children, quickly first so that a function can serve, then best in the
background."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from . import frames
from .frames import LocalFunction
from .processes import NotBorn, Processes, decode_failure
from .settings import processors
from .steps import SyncFailed
from .wasmedge import BEST, QUICK, AotFile, find
from .wasmedge.compile import key

log = logging.getLogger("skerry.compiler")

TRIES: Final = 3
"""For a compiler that dies: the zygote may have been replaced; then the artifact is to blame."""
BEST_LIMIT: Final = 3600.0

_decode_compiled: Final = msgspec.json.Decoder(frames.Compiled).decode


class Compiler:
    def __init__(self, artifacts: Path, folder: Path, processes: Processes, limit: float) -> None:
        """`folder`: the private cache of AOT files; `limit`: seconds for one artifact at the quick level."""
        self._artifacts = artifacts
        self._folder = folder
        self._processes = processes
        self._limit = limit
        self._quick = asyncio.Semaphore(processors())
        self._known: dict[tuple[str, int], AotFile] = {}
        """Files that were found or made, and checked, since the start."""
        self._damaged: set[str] = set()
        """Artifacts with a file that a worker couldn't load: they are made again."""
        self._hopeless: set[str] = set()
        """Artifacts that the best level failed on: they stay at the quick one until the node starts again."""

    async def functions(self, planned: list[LocalFunction]) -> list[LocalFunction]:
        """The same functions with AOT files to start on. Error: `SyncFailed`."""
        files = await self._all({f.sha256 for f in planned}, lenient=False)
        return [with_aot(f, files[f.sha256]) for f in planned]

    async def available(self, stored: list[LocalFunction]) -> list[LocalFunction]:
        """The same functions, those without a file that can't be compiled either: they can't be called, others can."""
        files = await self._all({f.sha256 for f in stored}, lenient=True)
        return [with_aot(f, files.get(f.sha256)) for f in stored]

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
        """The release's functions, one more of them at the best level: to be called until they are all."""
        for function in release.functions:
            if function.sha256 in self._hopeless or self.is_best(function):
                continue
            self._damaged.discard(function.sha256)
            try:
                best = await self.compile(function.sha256, BEST, background=True)
            except SyncFailed as failed:
                log.warning("%s stays at the quick level: %s", function.name, failed.message)
                self._hopeless.add(function.sha256)
                continue
            return [with_aot(f, best) if f.sha256 == function.sha256 else f for f in release.functions]
        return release.functions

    def damaged(self, sha256: str) -> None:
        """A worker found an AOT file of this artifact damaged: look at what is on disk again."""
        self._damaged.add(sha256)
        for level in (QUICK, BEST):
            self._known.pop((sha256, level), None)

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
            self._folder / f"{key(function.sha256, BEST)}.so"
        )

    async def _all(self, wanted: set[str], *, lenient: bool) -> dict[str, AotFile]:
        files: dict[str, AotFile] = {}

        async def one(sha256: str) -> None:
            try:
                found = await self._find(sha256, BEST)
                if found is None:
                    async with self._quick:
                        found = await self.compile(sha256, QUICK)
                files[sha256] = found
            except SyncFailed as failed:
                if not lenient:
                    raise
                log.error("artifact %s can't be served: %s", sha256, failed.message)

        try:
            async with asyncio.TaskGroup() as group:
                for sha256 in sorted(wanted):
                    group.create_task(one(sha256))
        except* SyncFailed as several:
            failure: BaseException = several
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
        else:
            return files
        raise failure

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
        path = self._artifacts / f"{sha256}.wasm"
        limit = BEST_LIMIT if background else self._limit
        child = await self._processes.birth("compiler", background=background)
        with contextlib.closing(child):
            try:
                asked = frames.Compile(str(path), sha256, str(self._folder), level)
                reply = await child.ask(frames.COMPILE, asked, limit)
            except TimeoutError:
                text = f"artifact {sha256} wasn't compiled after {limit:g} s (compile_limit)"
                raise SyncFailed("compile_timeout", text) from None
        if reply.kind == frames.FAILED:
            failure = decode_failure(reply.body)
            raise SyncFailed(failure.code, failure.message)
        made = _decode_compiled(reply.body)
        return AotFile(Path(made.path), made.digest)


def with_aot(function: LocalFunction, aot: AotFile | None) -> LocalFunction:
    path, digest = ("", "") if aot is None else (str(aot.path), aot.digest)
    return msgspec.structs.replace(function, aot=path, aot_digest=digest)
