"""Finds or compiles the code that each function runs (docs/adr/0008).

Artifacts are compiled quickly first, so that all functions serve compiled code soon, and then in the background at the
best level. A new function doesn't wait long for its AOT file: it starts on the interpreter.

A snapshot (docs/adr/0076) is split. Its engine is compiled once for all of that engine, always at the best level, and a
release waits for that: it is far too slow for the interpreter.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Set
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime import clock
from edge_runtime.aot_cache import (
    BEST,
    QUICK,
    SNAPSHOT_BYTES,
    AotFile,
    Damaged,
    ImageFile,
    discard_damaged,
    engine_file,
    image_of,
    key,
    locate,
    memory_estimate,
    remove_others,
    verify,
)
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.ipc.local_code import Code, with_code
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.release.compile_jobs import BEST_LIMIT, ENGINE_LIMIT, CompileJobs

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
        engine_limit: float = BEST_LIMIT,
    ) -> None:
        """`folder`: the private cache of AOT files; `limit`: seconds for one artifact that somebody waits for; `wait`:
        seconds after which a new function starts on the interpreter; `code_memory`: bytes that a worker has for
        functions; `engine_limit`: seconds for a snapshot's engine that somebody waits for."""
        self._artifacts = artifacts
        self._folder = folder
        self._wait = wait
        self._code_memory = code_memory
        self._names: dict[str, str] = {}
        """By artifact that was last planned or served: the names of its functions."""
        self.compilations = CompileJobs(artifacts, folder, processes, limit, self.named, engine_limit)
        self._engine_limit = engine_limit
        self.best = BEST
        """The level to which functions are compiled in the background."""
        self._known: dict[tuple[str, int], AotFile] = {}
        """AOT files that were found or made since startup, by artifact and level. They are checked when they are
        loaded."""
        self._snapshots: dict[str, bool] = {}
        """By artifact: whether it is a snapshot that was split, as far as that was found out."""
        self._damaged: set[str] = set()
        """Artifacts with an AOT file that was found damaged and must be made again."""
        self._mended: dict[str, int] = {}
        """By snapshot's artifact: how often its files were found damaged and made again."""
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

    async def functions(
        self,
        planned: list[LocalFunction],
        compiled: Set[str] = frozenset(),
        tell: Callable[[str], None] = lambda _: None,
    ) -> list[LocalFunction]:
        """Return `planned`, each with the code to start on.

        Functions whose names are in `compiled` serve compiled code now and wait for their AOT files, and snapshots wait
        for their engines', of which `tell` is told; the others wait only a moment and may start on the interpreter.
        Raises: SyncFailed, when a function has no code.
        """
        self._released_at = clock.monotonic()
        patient = {f.sha256 for f in planned if f.name in compiled}
        return await self._start(planned, patient, tell, lenient=False)

    async def in_background(self, planned: list[LocalFunction]) -> list[LocalFunction]:
        """Return `planned`, each with compiled code, which is made in processes that let all others run first.

        Raises: SyncFailed, when a function can't be compiled.
        """
        self._name(planned)
        made = {}
        for sha256 in sorted({f.sha256 for f in planned}):
            made[sha256] = await self._find(sha256, BEST) or await self.compile(sha256, QUICK, background=True)
        return [self._on(f, made[f.sha256]) for f in planned]

    async def available(self, stored: list[LocalFunction]) -> list[LocalFunction]:
        """Return `stored`, each with the code to start on; those without any can't be called."""
        return await self._start(stored, frozenset(), lambda _: None, lenient=True)

    def named(self, sha256: str) -> str:
        """Return the name of an artifact in the log and in errors: the function versions made from it."""
        return self._names.get(sha256) or f"artifact {sha256}"

    async def compile(
        self, sha256: str, level: int, *, background: bool = False, tell: Callable[[str], None] = lambda _: None
    ) -> AotFile:
        """Find the AOT file of an artifact, or compile it in a child; a snapshot's is its engine's, at the best level.
        `tell` is told if an engine must be compiled. Raises: SyncFailed."""
        aot = await self._find(sha256, level)
        if aot is None:
            try:
                image = await self._split(sha256, background)
                if image is None:
                    aot = await self.compilations.make(sha256, level, background=background)
                else:
                    aot = await self._with_engine(sha256, image, background, tell)
            except SyncFailed as failed:
                if failed.code == "artifact_lost":
                    self.lost.add(sha256)
                raise
            self._known[sha256, level] = aot
        return aot

    async def _split(self, sha256: str, background: bool) -> ImageFile | None:
        """Return a snapshot's image; None for an artifact that stays whole. Raises: SyncFailed."""
        if self._snapshots.get(sha256) is False or not await asyncio.to_thread(self._is_large, sha256):
            return None
        image = await asyncio.to_thread(self._image, sha256)
        if image is None:
            image = await self.compilations.split(sha256, background=background)
        self._snapshots[sha256] = image is not None
        return image

    def _is_large(self, sha256: str) -> bool:
        with contextlib.suppress(OSError):
            return (self._artifacts / f"{sha256}.wasm").stat().st_size >= SNAPSHOT_BYTES
        return False

    def _image(self, sha256: str) -> ImageFile | None:
        """Return the image that was made earlier, if its engine's module is there too."""
        image = image_of(self._folder, sha256)
        return image if image is not None and engine_file(self._folder, image.engine).exists() else None

    async def _with_engine(
        self, sha256: str, image: ImageFile, background: bool, tell: Callable[[str], None]
    ) -> AotFile:
        """Return the AOT file of a snapshot's engine, with the image. Raises: SyncFailed."""
        there = await asyncio.to_thread(locate, self._folder, image.engine, BEST)
        if there is not None:
            return dataclasses.replace(there, image=image)
        name, began = self.named(sha256), clock.monotonic()
        limit = "" if background else f"; that may take {self._engine_limit:g} s ({ENGINE_LIMIT})"
        log.info("%s waits for its engine, which is compiled once for all functions of it%s", name, limit)
        tell(f"the engine of {name}, once for all functions of it")
        made = await self.compilations.make_engine(sha256, image, background=background)
        log.info("%s has its engine, after %.1f s", name, clock.monotonic() - began)
        return made

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
                if _is_gone(function) or (function.image and self._on(function, better) != function):
                    return [self._on(f, better) if f.sha256 == function.sha256 else f for f in functions]
        for level in (QUICK, self.best):
            for function in functions:
                if function.sha256 in self._hopeless | self.postponed or self.is_best(function):
                    continue
                if level == QUICK and function.aot:
                    continue
                if level != QUICK and not await self._calm():
                    return None
                try:
                    # A snapshot without its engine can't be called.
                    made = await self.compile(function.sha256, level, background=not function.image)
                except SyncFailed as failed:
                    now = "at the quick level" if function.aot else "on the interpreter"
                    now = "without compiled code" if function.image else now
                    log.warning("%s stays %s: %s", self.named(function.sha256), now, failed.message)
                    self.give_up({function.sha256}, failed.code)
                    continue
                return [self._on(f, made) if f.sha256 == function.sha256 else f for f in functions]
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
        for sha256 in {*self._names, *self._snapshots, *self._mended} - keep:
            for known_of in (self._names, self._snapshots, self._mended):
                known_of.pop(sha256, None)

    def is_best(self, function: LocalFunction) -> bool:
        """Return whether a function runs code compiled at the best level."""
        best = str(self._folder / f"{key(function.sha256, self.best)}.so")
        if function.sha256 in self._damaged:
            return False
        return function.aot == best or bool(function.image and function.aot)

    async def _start(
        self, planned: list[LocalFunction], patient: Set[str], tell: Callable[[str], None], *, lenient: bool
    ) -> list[LocalFunction]:
        """Return `planned` with the code to start on. Artifacts in `patient` wait for their AOT files; with `lenient`,
        functions without any code are kept."""
        self._hopeless -= {f.sha256 for f in planned}
        self._name(planned)
        deadline = clock.monotonic() + self._wait
        made: dict[str, Code] = {}
        """The code to start on, by artifact."""

        async def one(sha256: str) -> None:
            try:
                best = await self._find(sha256, BEST)
                made[sha256] = best or await self._quickly(sha256, deadline, sha256 in patient, tell, lenient=lenient)
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

    async def _quickly(
        self, sha256: str, deadline: float, patient: bool, tell: Callable[[str], None], *, lenient: bool
    ) -> Code:
        """Return an AOT file at the quick level, or the artifact itself if compiling takes longer than `deadline` and
        the interpreter has room for it. A snapshot waits for its engine; with `lenient`, it is returned without.
        Raises: SyncFailed."""
        path = self._artifacts / f"{sha256}.wasm"
        too_large = memory_estimate(path, compiled=False) > self._code_memory
        image = await self._split(sha256, background=False)
        if image is not None and lenient:
            log.warning("%s can't be called until its engine is compiled", self.named(sha256))
            return image
        if patient or image is not None or (too_large and not lenient):
            return await self.compile(sha256, QUICK, tell=tell)
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

    async def _mend(self, sha256: str) -> Code | None:
        """Remove the damaged AOT files of an artifact; return what to run meanwhile, None if the artifact is lost too.

        Raises: SyncFailed, when they can't be removed, or if the interpreter has no room for it and it can't be
        compiled now.
        """
        # All, since functions of one engine have its AOT file.
        self._known.clear()
        try:
            removed = await asyncio.to_thread(discard_damaged, self._folder, sha256)
            if removed:
                self._hopeless.discard(sha256)
        except OSError as error:
            raise SyncFailed("compile_io", f"its damaged code can't be removed: {error}; look at the disk") from None
        self._damaged.discard(sha256)
        try:
            path = await self._whole(sha256)
        except SyncFailed as failed:
            log.error("%s can't be served: %s", self.named(sha256), failed.message)
            return None
        image = await self._split(sha256, background=False)
        if image is not None:
            found = await self._find(sha256, BEST)
            if removed or found is None:
                self._mended[sha256] = self._mended.get(sha256, 0) + 1
            return found or image
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

    def _on(self, function: LocalFunction, code: Code | None) -> LocalFunction:
        """Return the function with its code, or without any."""
        # With the artifact, in case the AOT file is damaged.
        function = with_code(function, code, self._artifacts / f"{function.sha256}.wasm")
        mended = self._mended.get(function.sha256, 0) if function.image else 0
        return msgspec.structs.replace(function, mended=mended)


def _is_gone(function: LocalFunction) -> bool:
    return any(path and not Path(path).exists() for path in (function.aot, function.image))
