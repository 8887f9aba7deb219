"""The artifacts on the node's disk: artifacts/<sha256>.wasm, each verified before it gets that name.

A download resumes where it broke off (artifacts/<sha256>.part), even after the process was killed. The space that a
release needs is checked before the first byte is fetched, so a full disk causes no traffic. Code that the node has, of
an engine that other snapshots brought, isn't fetched again (`known_engines`).
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from control.protocol import wire
from edge_runtime import clock, files
from edge_runtime.aot_cache import ENGINE_SUFFIX, FOLDER, SNAPSHOT_BYTES
from edge_runtime.errors import CodedError, SyncFailed
from edge_runtime.sync import known_engines, plan_check
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer, continues

log = logging.getLogger("skerry.artifacts")

PARALLEL = 4
"""Downloads at once."""
TRIES = 4
"""Consecutive attempts without a new byte before a download is given up until the sync's next attempt."""
CHUNK = 256 * 1024
"""Bytes that are read at once."""


class _Interrupted(CodedError):
    """The connection ended, or was refused, before the artifact was complete."""

    def __init__(self, code: str, message: str, *, stale: bool = False) -> None:
        super().__init__(code, message)
        self.stale = stale
        """Whether the URL is refused: another one must be requested."""


class Artifacts:
    """The folder of artifacts in a state directory; `pause` is the first wait after a fruitless attempt, in seconds."""

    def __init__(self, state: Path, *, pause: float = 0.2) -> None:
        self.folder = state / "artifacts"
        self._engines = state / FOLDER
        self._earlier = state / "outbox" / "earlier.json"
        self._pause = pause
        files.make_folder(self.folder)

    def path(self, sha256: str) -> Path:
        """Return where an artifact is, or would be."""
        return self.folder / f"{sha256}.wasm"

    async def fetch(
        self, client: ControlClient, functions: Collection[wire.PlannedFunction], trusted: Collection[str]
    ) -> None:
        """Fetch every missing artifact of a plan; control is asked for sizes that are 0.

        `trusted` are the sha256 of the artifacts that are served now; other present ones are verified again.
        Raises: SyncFailed, when an artifact can't be fetched or kept.
        """
        wanted = {f.sha256: f for f in functions}
        todo = [f for f in wanted.values() if not (f.sha256 in trusted and self.path(f.sha256).exists())]
        if not todo:
            return
        missing = [await self._sized(client, function) for function in await asyncio.to_thread(self._missing, todo)]
        await asyncio.to_thread(self._check_space, missing)
        slots = asyncio.Semaphore(PARALLEL)

        async def one(function: wire.PlannedFunction) -> None:
            async with slots:
                await self._fetch(client, function)

        try:
            async with asyncio.TaskGroup() as group:
                for function in missing:
                    group.create_task(one(function))
        except ExceptionGroup as failures:
            refused, others = failures.split(SyncFailed)
            if refused is None or others is not None:
                raise
            # One failure is enough for a person; the others are about the same network or disk.
            raise _first(refused) from None

    def earlier(self) -> set[str]:
        """Return the sha256 of the artifacts of the release before the present one. If they were never noted, return
        all that are on disk, and note those."""
        try:
            return msgspec.json.decode(self._earlier.read_bytes(), type=set[str])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if not isinstance(error, FileNotFoundError):
                log.error("%s can't be read: %s", self._earlier, error)
        found: set[str] = set()
        with contextlib.suppress(OSError):
            found = {file.name[:64] for file in self.folder.iterdir()}
        self.note_earlier(found)
        return found

    def note_earlier(self, sha256s: Collection[str]) -> None:
        """Note the artifacts of the release before the present one: a rollback needs them, also after a restart."""
        try:
            files.make_folder(self._earlier.parent)
            files.write(self._earlier, msgspec.json.encode(sorted(sha256s)))
        except OSError as error:
            log.error("which artifacts the release before has can't be kept on disk: %s", error)

    def collect(self, keep: Collection[str]) -> None:
        """Remove every artifact and unfinished download except those of `keep` (sha256)."""
        for file in self.folder.iterdir():
            if file.is_file() and file.name[:64] not in keep:
                file.unlink(missing_ok=True)

    def _missing(self, functions: Collection[wire.PlannedFunction]) -> list[wire.PlannedFunction]:
        """Return the functions whose artifacts are missing; remove files that no longer have the artifact's bytes.

        Raises: SyncFailed, when the disk can't be written.
        """
        missing = []
        for function in functions:
            file = self.path(function.sha256)
            try:
                if _sha256(file) == function.sha256:
                    continue
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    name = f"{function.name}@{function.version}"
                    log.error("the artifact of %s can't be read, and is fetched again: %s", name, error)
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise _disk(error, file) from error
            missing.append(function)
        return missing

    def _check_space(self, missing: Collection[wire.PlannedFunction]) -> None:
        """Raises: SyncFailed, when the disk has no space for what is missing."""
        present = {f.sha256: _size(self._part(f.sha256)) for f in missing}
        plan_check.check_space(
            plan_check.space_needed(missing, present), files.free_bytes(self.folder), str(self.folder)
        )

    async def _sized(self, client: ControlClient, function: wire.PlannedFunction) -> wire.PlannedFunction:
        """Return a function with the size of its artifact. Raises: SyncFailed."""
        if function.size:
            return function
        try:
            return msgspec.structs.replace(function, size=await client.artifact_size(function.sha256))
        except (NoAnswer, ControlRefused) as error:
            code = "artifact_unreachable" if isinstance(error, NoAnswer) else "artifact_refused"
            text = f"artifact {function.sha256} of function {function.name} can't be fetched: {error.message}"
            raise SyncFailed(code, text) from None

    def _part(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.part"

    async def _fetch(self, client: ControlClient, function: wire.PlannedFunction) -> None:
        """Download one artifact: resume after each break, and request a fresh URL when this one is refused."""
        part = self._part(function.sha256)
        url = function.url
        fruitless = 0
        if not _size(part):
            await self._begin_with_engine(client, function, url)
        while True:
            before = _size(part)
            try:
                await self._download(client, function, url, before)
                return
            except _Interrupted as broken:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless == TRIES:
                    raise SyncFailed(
                        broken.code,
                        f"artifact {function.sha256} of function {function.name} can't be fetched: {broken}",
                    ) from None
                if broken.stale:
                    # A presigned URL expires; control signs another, or sends the bytes itself.
                    url = f"/v1/artifacts/{function.sha256}"
                if fruitless:
                    await clock.sleep(self._pause * 2 ** (fruitless - 1))
            except OSError as error:
                raise _disk(error, part) from error

    async def _begin_with_engine(self, client: ControlClient, function: wire.PlannedFunction, url: str) -> None:
        """Begin the download of a snapshot with the code of its engine, if the node has that. Without success, nothing
        is there yet, and the download begins as any other; it also notices code that isn't the artifact's."""
        if function.size < SNAPSHOT_BYTES or not any(self._engines.glob(f"*{ENGINE_SUFFIX}")):
            return
        head = b""
        with contextlib.suppress(NoAnswer, ControlRefused, OSError):
            async with client.open_artifact(url, 0, known_engines.HEAD) as response:
                while len(head) < known_engines.HEAD and (chunk := await response.content.read(known_engines.HEAD)):
                    head += chunk
            await asyncio.to_thread(self._write_begun, function, head[: known_engines.HEAD])

    def _write_begun(self, function: wire.PlannedFunction, head: bytes) -> None:
        """Write the first bytes of an artifact, with its code if an engine has that. Raises: OSError."""
        engines = (path.read_bytes() for path in sorted(self._engines.glob(f"*{ENGINE_SUFFIX}")))
        begun = known_engines.begun(head, function.size, engines)
        self._part(function.sha256).write_bytes(head if begun is None else begun)

    async def _download(self, client: ControlClient, function: wire.PlannedFunction, url: str, start: int) -> None:
        part = self._part(function.sha256)
        if start >= function.size:
            # The file is complete, but the process was killed before renaming it; or it has other bytes.
            if await asyncio.to_thread(_sha256, part) == function.sha256:
                with part.open("rb") as whole:
                    await asyncio.to_thread(self._finish, whole, function.sha256)
                return
            await asyncio.to_thread(part.unlink)
            start = 0
        try:
            # Opened before the request: bytes on a connection that breaks are lost unless they are read at once.
            file, digest = await asyncio.to_thread(_open, part, start)
            with file:
                async with client.open_artifact(url, start) as response:
                    if start and not continues(response, start):
                        start = 0
                        digest = await asyncio.to_thread(_begin, file, start)
                    size = start
                    async for chunk in response.content.iter_chunked(CHUNK):
                        size += len(chunk)
                        if size > function.size:
                            break
                        await asyncio.to_thread(_take, file, digest, chunk)
                    if size < function.size:
                        raise _Interrupted("artifact_unreachable", f"it ended after {size} of {function.size} bytes")
                    if size > function.size or digest.hexdigest() != function.sha256:
                        part.unlink()
                        if start:
                            raise _Interrupted(
                                "artifact_mismatch", "the bytes kept of an earlier attempt were not its own"
                            )
                        raise SyncFailed(
                            "artifact_mismatch",
                            f"what came for function {function.name} is not artifact {function.sha256} "
                            f"({size} bytes with sha256 {digest.hexdigest()}, {function.size} bytes were promised); "
                            "nothing of it was kept: look at the artifact store and at what lies between",
                        )
                    await asyncio.to_thread(self._finish, file, function.sha256)
        except NoAnswer as error:
            raise _Interrupted("artifact_unreachable", error.message) from None
        except ControlRefused as refusal:
            if refusal.status == 416:
                part.unlink(missing_ok=True)
            raise _Interrupted("artifact_refused", refusal.message, stale=True) from None

    def _finish(self, file: BinaryIO, sha256: str) -> None:
        # Bytes that Python still buffers wouldn't be synced.
        file.flush()
        os.fsync(file.fileno())
        self._part(sha256).replace(self.path(sha256))
        files.sync_folder(self.folder)


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def _open(part: Path, start: int) -> tuple[BinaryIO, _Digest]:
    file = part.open("r+b" if start else "wb")
    try:
        return file, _begin(file, start)
    except BaseException:
        file.close()
        raise


def _begin(file: BinaryIO, start: int) -> _Digest:
    """Truncate the file after its first `start` bytes, which an earlier attempt left; return their digest."""
    digest = hashlib.sha256()
    file.seek(0)
    left = start
    while left and (chunk := file.read(min(left, CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    file.truncate(start)
    return digest


def _take(file: BinaryIO, digest: _Digest, chunk: bytes) -> None:
    file.write(chunk)
    digest.update(chunk)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _disk(error: OSError, path: Path) -> SyncFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SyncFailed("disk_full", f"no space is left for {path}; free some, then `skerry node retry`")
    return SyncFailed("disk_failed", f"{path} can't be written: {error}")


def _first(group: BaseExceptionGroup[SyncFailed]) -> SyncFailed:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
