"""Checks the digests of the served release's artifacts, AOT files and images, at startup and once a day, in a child
with idle priority. A damaged artifact is fetched again, a damaged AOT file or image is made again."""

import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_runtime import clock
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import NotBorn, ZygoteClient
from edge_runtime.release.compiler import Compiler
from edge_runtime.release.manager import ReleaseManager

log = logging.getLogger("skerry.verification")

PERIOD: Final = 86_400.0
"""Seconds between the end of one check and the start of the next."""
AGAIN: Final = 60.0
"""Seconds until a check that couldn't be done is tried again."""
LIMIT: Final = 43_200.0
"""Seconds that a check may take: it gets only the processor and disk time that others leave."""

_decode_verified: Final = msgspec.json.Decoder(frames.Verified).decode


class IntegrityCheck:
    """Checks the files of the release being served. Start `run` when the manager has booted."""

    def __init__(self, manager: ReleaseManager, compiler: Compiler, processes: ZygoteClient, artifacts: Path) -> None:
        self._manager = manager
        self._compiler = compiler
        self._processes = processes
        self._artifacts = artifacts
        self._at: datetime | None = None
        self._damaged: list[str] = []

    async def run(self) -> None:
        """Check at startup and once a day, until cancelled."""
        while True:
            try:
                await self.check()
            except (NotBorn, frames.ChildGone, TimeoutError) as error:
                log.warning("artifacts and compiled code could not be checked: %s", error or "it took too long")
                await clock.sleep(AGAIN)
            else:
                await clock.sleep(PERIOD)

    async def check(self) -> None:
        """Check all files once. Raises: NotBorn, ChildGone, TimeoutError."""
        release = self._manager.release
        artifacts, digests, names = {}, {}, {}
        users: dict[str, set[str]] = {}
        """By file that was made from artifacts: their sha256. Functions of one engine have its AOT file."""
        for function in release.functions if release is not None else []:
            artifacts[str(self._artifacts / f"{function.sha256}.wasm")] = function.sha256
            names[function.sha256] = f"{function.name}@{function.version}"
            for path, digest in ((function.aot, function.aot_digest), (function.image, function.image_digest)):
                if path:
                    digests[path] = digest
                    users.setdefault(path, set()).add(function.sha256)
        files = [*artifacts.items(), *digests.items()]
        damaged: list[str] = []
        if files:
            child = await self._processes.birth("compiler", background=True)
            with contextlib.closing(child):
                reply = await child.ask(frames.VERIFY, frames.Verify(files), LIMIT)
            told = frames.told(reply, frames.VERIFIED, _decode_verified).damaged
            damaged = [path for path in told if path in digests or path in artifacts]
        for path in damaged:
            of = ", ".join(sorted(names[sha256] for sha256 in users.get(path) or {artifacts[path]}))
            again = "made" if path in digests else "fetched"
            log.error("%s: %s is damaged or gone: it is %s again", of, path, again)
        # Another release may have come meanwhile and brought its own files.
        served = {f.sha256 for f in self._manager.release.functions} if self._manager.release is not None else set()
        for sha256 in {sha256 for path in damaged for sha256 in users.get(path, ())} & served:
            self._manager.damaged(sha256)
        if lost := {artifacts[path] for path in damaged if path in artifacts} & served:
            self._compiler.lost |= lost
            self._manager.less.set()
        self._at, self._damaged = datetime.now(UTC), [Path(path).name for path in damaged]

    def status(self) -> dict[str, Any]:
        """Return, for the node's status, when the files were last checked, and which were damaged then."""
        at = self._at and self._at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"at": at, "damaged": self._damaged}
