"""Finds or compiles the code that each function runs (docs/adr/0008).

Artifacts are compiled quickly first, so that all functions serve compiled code soon, and then in the background at the
best level. A new function doesn't wait long for its AOT file: it starts on the interpreter.
"""

import asyncio
import logging
from collections.abc import Set
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime import clock
from edge_runtime.aot_cache import (
    BEST,
    QUICK,
    AotFile,
    Damaged,
    discard_damaged,
    key,
    locate,
    memory_estimate,
    remove_others,
    verify,
)
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.release.compile_jobs import CompileJobs

log = logging.getLogger("skerry.compiler")

CALM = 1.0
"""Seconds without a release after which functions are compiled at the best level: a release that follows immediately
then has the processors, and what it replaces isn't compiled in vain."""
CALM_LOOK: Final = 0.1
"""Seconds after which `improve` is called again meanwhile: something may be damaged."""

_LASTING: Final = frozenset(
    (
        "artifact_lost",
        "compile_crashed",
        "compile_failed",
        "compile_timeout",
        "function_too_large",
        "function_uncompiled",
        "function_unloadable",
        "module_load_crashed",
    )
)
"""Codes of failures that are the artifact's fault. After other failures, of the disk or the machine, compiling is
retried later."""


class Compiler:
    """Knows the AOT files of the node's artifacts. `compilations.run` must be running."""

    def __init__(
        self,
        artifacts: Path,
        folder: Path,
        processes: ZygoteClient,
        limit: float,
        wait: float,
        code_memory: int = 256 * 1024 * 1024,
    ) -> None:
        """`folder`: the private cache of AOT files; `limit`: seconds for one artifact that somebody waits for; `wait`:
        seconds after which a new function starts on the interpreter; `code_memory`: bytes that a worker has for
        functions."""
        self._artifacts = artifacts
        self._folder = folder
        self._wait = wait
        self._code_memory = code_memory
        self._names: dict[str, str] = {}
        """By artifact that was last planned or served: the names of its functions."""
        self.compilations = CompileJobs(artifacts, folder, processes, limit, self.named)
        self.best = BEST
        """The level to which functions are compiled in the background."""
        self._known: dict[tuple[str, int], AotFile] = {}
        """AOT files that were found or made since startup, by artifact and level. They are checked when they are
        loaded."""
        self._damaged: set[str] = set()
        """Artifacts with an AOT file that was found damaged and must be made again."""
        self._hopeless: set[str] = set()
        """Artifacts that couldn't be compiled at some level: they keep what they have until a sync or the next
        startup."""
        self.postponed: set[str] = set()
        """Artifacts for which there was no room or process: `improve` skips them until they are removed from this
        set."""
        self._released_at = -CALM
        """When preparation of the last release began, in seconds of the event loop's clock."""
        self.lost: set[str] = set()
        """Artifacts that are missing or damaged on disk: they must be fetched again."""

    async def on_disk(self, wanted: Set[str]) -> None:
        """Wait until the compiled code of these artifacts is on disk. Raises: SyncFailed, when it can't be."""
        try:
            await self.compilations.on_disk(wanted)
        except SyncFailed:
            # It was removed; make it again.
            self._known = {known: aot for known, aot in self._known.items() if known[0] not in wanted}
            raise

    async def functions(self, planned: list[LocalFunction], compiled: Set[str] = frozenset()) -> list[LocalFunction]:
        """Return `planned`, each with the code to start on.

        Functions whose names are in `compiled` serve compiled code now and wait for their AOT files; the others wait
        only a moment and may start on the interpreter. Raises: SyncFailed, when a function has no code.
        """
        self._released_at = clock.monotonic()
        return await self._start(planned, {f.sha256 for f in planned if f.name in compiled}, lenient=False)

    async def in_background(self, planned: list[LocalFunction]) -> list[LocalFunction]:
        """Return `planned`, each with compiled code, which is made in processes that let all others run first.

        Raises: SyncFailed, when a function can't be compiled.
        """
        self._name(planned)
        made = {}
        for sha256 in sorted({f.sha256 for f in planned}):
            made[sha256] = await self._find(sha256, BEST) or await self.compile(sha256, QUICK, background=True)
        return [self._with_aot(f, made[f.sha256]) for f in planned]

    async def available(self, stored: list[LocalFunction]) -> list[LocalFunction]:
        """Return `stored`, each with the code to start on; those without any can't be called."""
        return await self._start(stored, frozenset(), lenient=True)

    def named(self, sha256: str) -> str:
        """Return the name of an artifact in the log and in errors: the function versions made from it."""
        return self._names.get(sha256) or f"artifact {sha256}"

    async def compile(self, sha256: str, level: int, *, background: bool = False) -> AotFile:
        """Find the AOT file of an artifact, or compile it in a child. Raises: SyncFailed."""
        aot = await self._find(sha256, level)
        if aot is None:
            try:
                aot = await self.compilations.make(sha256, level, background=background)
            except SyncFailed as failed:
                if failed.code == "artifact_lost":
                    self.lost.add(sha256)
                raise
            self._known[sha256, level] = aot
        return aot

    async def improve(self, release: LocalRelease) -> list[LocalFunction] | None:
        """Return the release's functions, one artifact with better code; the same list if there is none better. None,
        after a while, if a release has just come: call again, with the one that then serves.

        All functions get quickly compiled code before the first one gets the best.
        """
        functions = release.functions
        for function in functions:
            if function.sha256 in self._damaged:
                try:
                    better = await self._mend(function.sha256)
                except SyncFailed as failed:
                    log.error("%s can't be compiled again: %s", self.named(function.sha256), failed.message)
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
                if level != QUICK and not await self._calm():
                    return None
                try:
                    made = await self.compile(function.sha256, level, background=True)
                except SyncFailed as failed:
                    log.warning("%s stays %s: %s", self.named(function.sha256), now, failed.message)
                    self.give_up({function.sha256}, failed.code)
                    continue
                return [self._with_aot(f, made) if f.sha256 == function.sha256 else f for f in functions]
        return functions

    async def _calm(self) -> bool:
        """Return whether no release has come for `CALM` seconds; if one has, wait a while."""
        left = self._released_at + CALM - clock.monotonic()
        if left <= 0:
            return True
        await clock.sleep(min(left, CALM_LOOK))
        return False

    def damaged(self, sha256: str) -> None:
        """Note that an AOT file of this artifact is damaged: `improve` then checks what is on disk."""
        self._damaged.add(sha256)

    def give_up(self, sha256s: Set[str], code: str) -> None:
        """Stop improving these artifacts, for now or for good, depending on the failure's `code`."""
        if code in _LASTING:
            self._hopeless |= sha256s
        else:
            self.postponed |= sha256s

    def collect(self, keep: set[str]) -> None:
        """Remove the AOT files of all artifacts except those in `keep` (sha256)."""
        remove_others(self._folder, keep)
        # This runs in a thread while the event loop may add others.
        for known in [k for k in list(self._known) if k[0] not in keep]:
            self._known.pop(known, None)
        for sha256 in [sha256 for sha256 in list(self._names) if sha256 not in keep]:
            self._names.pop(sha256, None)

    def is_best(self, function: LocalFunction) -> bool:
        """Return whether a function runs code compiled at the best level."""
        return function.sha256 not in self._damaged and function.aot == str(
            self._folder / f"{key(function.sha256, self.best)}.so"
        )

    async def _start(self, planned: list[LocalFunction], patient: Set[str], *, lenient: bool) -> list[LocalFunction]:
        """Return `planned` with the code to start on. Artifacts in `patient` wait for their AOT files; with `lenient`,
        functions without any code are kept."""
        self._hopeless -= {f.sha256 for f in planned}
        self._name(planned)
        deadline = clock.monotonic() + self._wait
        made: dict[str, AotFile | Path] = {}
        """The code to start on, by artifact."""

        async def one(sha256: str) -> None:
            try:
                best = await self._find(sha256, BEST)
                made[sha256] = best or await self._quickly(sha256, deadline, sha256 in patient, lenient)
            except SyncFailed as failed:
                if not lenient:
                    raise
                log.error("%s can't be served: %s", self.named(sha256), failed.message)

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

    def _name(self, planned: list[LocalFunction]) -> None:
        for sha256 in {f.sha256 for f in planned}:
            self._names[sha256] = ", ".join(sorted(f"{f.name}@{f.version}" for f in planned if f.sha256 == sha256))

    async def _quickly(self, sha256: str, deadline: float, patient: bool, lenient: bool) -> AotFile | Path:
        """Return an AOT file at the quick level, or the artifact itself if compiling takes longer than `deadline` and
        the interpreter has room for it. Raises: SyncFailed."""
        path = self._artifacts / f"{sha256}.wasm"
        too_large = memory_estimate(path, compiled=False) > self._code_memory
        if patient or (too_large and not lenient):
            return await self.compile(sha256, QUICK)
        try:
            async with clock.timeout(deadline - clock.monotonic()):
                return await self.compile(sha256, QUICK)
        except TimeoutError:
            pass
        await self._whole(sha256)
        if too_large:
            text = f"{self.named(sha256)} is too large for the interpreter, and still being compiled; wait for that"
            raise SyncFailed("function_uncompiled", text)
        log.info("%s starts on the interpreter: it takes long to compile", self.named(sha256))
        return path

    async def _whole(self, sha256: str) -> Path:
        """Return the artifact's path. Raises: SyncFailed, when it is missing or damaged."""
        path = self._artifacts / f"{sha256}.wasm"
        try:
            await asyncio.to_thread(verify, path, sha256)
        except (Damaged, OSError) as error:
            self.lost.add(sha256)
            raise SyncFailed("artifact_lost", str(error)) from None
        return path

    async def _mend(self, sha256: str) -> AotFile | Path | None:
        """Remove the damaged AOT files of an artifact; return what to run meanwhile, None if the artifact is lost too.

        Raises: SyncFailed, when they can't be removed, or if the interpreter has no room for it and it can't be
        compiled now.
        """
        for level in (QUICK, BEST):
            self._known.pop((sha256, level), None)
        try:
            if await asyncio.to_thread(discard_damaged, self._folder, sha256):
                self._hopeless.discard(sha256)
        except OSError as error:
            raise SyncFailed("compile_io", f"its damaged code can't be removed: {error}; look at the disk") from None
        self._damaged.discard(sha256)
        try:
            path = await self._whole(sha256)
        except SyncFailed as failed:
            log.error("%s can't be served: %s", self.named(sha256), failed.message)
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
        """Return the function with its code: an AOT file, its artifact, or nothing."""
        return self._with_aot(function, code) if isinstance(code, AotFile) else _on(function, code)

    def _with_aot(self, function: LocalFunction, aot: AotFile) -> LocalFunction:
        """Return the function with an AOT file, and with its artifact in case that is damaged."""
        wasm = str(self._artifacts / f"{function.sha256}.wasm")
        return msgspec.structs.replace(function, wasm=wasm, aot=str(aot.path), aot_digest=aot.digest)


def _is_gone(function: LocalFunction) -> bool:
    return bool(function.aot) and not Path(function.aot).exists()


def _on(function: LocalFunction, wasm: Path | None) -> LocalFunction:
    """Return the function on the interpreter, or without any code."""
    return msgspec.structs.replace(function, wasm="" if wasm is None else str(wasm), aot="", aot_digest="")
