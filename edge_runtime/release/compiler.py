"""What each function runs: AOT files, compiled quickly first so that all serve compiled code soon, then best in the
background. A new function doesn't wait for its file long: it starts on the interpreter (docs/adr/0008)."""

import asyncio
import logging
from collections.abc import Set
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.aot_cache import BEST, QUICK, AotFile, Damaged, discard_damaged, key, locate, memory_estimate, verify
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.release.compile_jobs import CompileJobs

log = logging.getLogger("skerry.compiler")

_PASSING: Final = ("compile_io", "load_timeout", "no_process")
"""Codes of failures that are no fault of the artifact's: it is tried again later."""


class Compiler:
    """`compilations.run` must be running beside."""

    def __init__(
        self,
        artifacts: Path,
        folder: Path,
        processes: ZygoteClient,
        limit: float,
        wait: float,
        code_memory: int = 256 * 1024 * 1024,
    ) -> None:
        """`folder`: the private cache of AOT files; `limit`: seconds for one artifact that is waited for; `wait`:
        seconds after which a new function starts without; `code_memory`: bytes that a worker has for functions."""
        self._artifacts = artifacts
        self._folder = folder
        self._wait = wait
        self._code_memory = code_memory
        self.compilations = CompileJobs(artifacts, folder, processes, limit)
        self.best = BEST
        """The level that functions get to in the background."""
        self._known: dict[tuple[str, int], AotFile] = {}
        """Files that were found or made since the start. Whoever loads one checks it."""
        self._damaged: set[str] = set()
        """Artifacts with an AOT file that was found damaged: it is looked for, and made again."""
        self._hopeless: set[str] = set()
        """Artifacts that a level failed on: they stay at what they have until a sync, or the node's next start."""
        self.postponed: set[str] = set()
        """Artifacts that there was no room, process or turn for: `improve` leaves them out until they are taken away
        from here."""
        self.lost: set[str] = set()
        """Artifacts that aren't whole on disk: to be fetched again."""

    async def functions(self, planned: list[LocalFunction], compiled: Set[str] = frozenset()) -> list[LocalFunction]:
        """The same functions with what to start on. Those whose names are in `compiled`, which serve compiled code now,
        wait for theirs; the others only for a moment. Raises: `SyncFailed`."""
        return await self._start(planned, {f.sha256 for f in planned if f.name in compiled}, lenient=False)

    async def available(self, stored: list[LocalFunction]) -> list[LocalFunction]:
        """The same functions; those that nothing can be made of can't be called, the others can."""
        return await self._start(stored, frozenset(), lenient=True)

    async def compile(self, sha256: str, level: int, *, background: bool = False) -> AotFile:
        """Compile one artifact in a child, or find what was compiled before. Raises: `SyncFailed`."""
        found = await self._find(sha256, level)
        if found is None:
            try:
                found = await self.compilations.make(sha256, level, background=background)
            except SyncFailed as failed:
                if failed.code == "artifact_lost":
                    self.lost.add(sha256)
                raise
            self._known[sha256, level] = found
        return found

    async def improve(self, release: LocalRelease) -> list[LocalFunction]:
        """The release's functions, one of them with better code: to be called until there is none better. All get
        quickly compiled code before the first gets the best."""
        functions = release.functions
        for function in functions:
            if function.sha256 in self._damaged:
                try:
                    better = await self._mend(function.sha256)
                except SyncFailed as failed:
                    log.error("%s can't be compiled again: %s", function.name, failed.message)
                    self.give_up({function.sha256}, failed.code)
                    continue
                if _is_gone(function):
                    return [self._on(f, better) if f.sha256 == function.sha256 else f for f in functions]
        for level, now in ((QUICK, "on the interpreter"), (self.best, "at the quick level")):
            for function in functions:
                if function.sha256 in self._hopeless | self.postponed or self.is_best(function):
                    continue
                if level == QUICK and function.aot:
                    continue
                try:
                    made = await self.compile(function.sha256, level, background=True)
                except SyncFailed as failed:
                    log.warning("%s stays %s: %s", function.name, now, failed.message)
                    self.give_up({function.sha256}, failed.code)
                    continue
                return [self._with_aot(f, made) if f.sha256 == function.sha256 else f for f in functions]
        return functions

    def damaged(self, sha256: str) -> None:
        """An AOT file of this artifact was found damaged: `improve` looks at what is on disk again."""
        self._damaged.add(sha256)

    def give_up(self, sha256s: Set[str], code: str) -> None:
        """Don't try to improve these artifacts' functions any more, or not now; `code`: of what failed."""
        if code in _PASSING:
            self.postponed |= sha256s
        else:
            self._hopeless |= sha256s

    def collect(self, keep: set[str]) -> None:
        """Remove the AOT files of all artifacts but those of `keep` (sha256)."""
        names = {key(sha256, level) for sha256 in keep for level in (QUICK, BEST)}
        for path in self._folder.iterdir():
            if path.suffix in (".so", ".sha256") and path.stem not in names:
                path.unlink(missing_ok=True)
        # In a thread, while the loop may find others.
        for known in [k for k in list(self._known) if k[0] not in keep]:
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
                made[sha256] = best or await self._quickly(sha256, deadline, sha256 in patient, lenient)
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
            return [self._on(f, made.get(f.sha256)) for f in planned]
        raise failure

    async def _quickly(self, sha256: str, deadline: float, patient: bool, lenient: bool) -> AotFile | Path:
        """What a function starts on: the artifact itself, where compiling it takes longer and it isn't too large for
        the interpreter. Raises: SyncFailed."""
        path = self._artifacts / f"{sha256}.wasm"
        too_large = memory_estimate(path, compiled=False) > self._code_memory
        if patient or (too_large and not lenient):
            return await self.compile(sha256, QUICK)
        try:
            async with asyncio.timeout_at(deadline):
                return await self.compile(sha256, QUICK)
        except TimeoutError:
            pass
        await self._whole(sha256)
        if too_large:
            text = f"artifact {sha256} is too large for the interpreter, and still being compiled; wait for that"
            raise SyncFailed("function_uncompiled", text)
        log.info("artifact %s starts on the interpreter: it takes long to compile", sha256)
        return path

    async def _whole(self, sha256: str) -> Path:
        """The artifact's path. Raises: SyncFailed, when it isn't whole."""
        path = self._artifacts / f"{sha256}.wasm"
        try:
            await asyncio.to_thread(verify, path, sha256)
        except (Damaged, OSError) as error:
            self.lost.add(sha256)
            raise SyncFailed("artifact_lost", str(error)) from None
        return path

    async def _mend(self, sha256: str) -> AotFile | Path | None:
        """Remove the damaged AOT files of an artifact; what to run meanwhile, None where the artifact is lost too.
        Raises: SyncFailed, when it is too large for the interpreter and can't be compiled now."""
        for level in (QUICK, BEST):
            self._known.pop((sha256, level), None)
        if await asyncio.to_thread(discard_damaged, self._folder, sha256):
            self._hopeless.discard(sha256)
        self._damaged.discard(sha256)
        try:
            path = await self._whole(sha256)
        except SyncFailed as failed:
            log.error("artifact %s can't be served: %s", sha256, failed.message)
            return None
        if memory_estimate(path, compiled=False) <= self._code_memory:
            return path
        return await self._find(sha256, BEST) or await self.compile(sha256, QUICK)

    async def _find(self, sha256: str, level: int) -> AotFile | None:
        known = self._known.get((sha256, level))
        if known is None:
            known = await asyncio.to_thread(locate, self._folder, sha256, level)
            if known is not None:
                self._known[sha256, level] = known
        return known

    def _on(self, function: LocalFunction, code: AotFile | Path | None) -> LocalFunction:
        """The function with what it starts on: an AOT file, its wasm, or nothing."""
        return self._with_aot(function, code) if isinstance(code, AotFile) else _on(function, code)

    def _with_aot(self, function: LocalFunction, aot: AotFile) -> LocalFunction:
        """The function with an AOT file, and its artifact for where that is damaged."""
        wasm = str(self._artifacts / f"{function.sha256}.wasm")
        return msgspec.structs.replace(function, wasm=wasm, aot=str(aot.path), aot_digest=aot.digest)


def _is_gone(function: LocalFunction) -> bool:
    return bool(function.aot) and not Path(function.aot).exists()


def _on(function: LocalFunction, wasm: Path | None) -> LocalFunction:
    """The function on the interpreter, or without any code."""
    return msgspec.structs.replace(function, wasm="" if wasm is None else str(wasm), aot="", aot_digest="")
