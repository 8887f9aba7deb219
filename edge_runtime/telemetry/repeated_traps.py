"""Finds out in which function of its module a guest trapped, and logs that.

Compiled code doesn't say, so the call is repeated on the interpreter: in its own process, when nothing else needs the
processor, and only if its function has no grants, so that it can change nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from edge_runtime import clock
from edge_runtime.ipc import frames
from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.zygote_client import Child, NotBorn

log = logging.getLogger("skerry.traps")

AGAIN: Final = 60.0
"""Seconds between two traps of a version of a function that are examined."""
LIMIT: Final = 20.0
"""Seconds that the call may take on the interpreter, or its manifest's limit if that is longer."""
BODY: Final = 1024 * 1024
"""Bytes of the largest body of a call that is repeated."""

Secrets = Callable[[Sequence[frames.LocalFunction]], dict[str, dict[str, str]]]

_decode: Final = msgspec.json.Decoder(frames.Repeated).decode


class Births(Protocol):
    """What starts processes, as `ZygoteClient` does."""

    async def birth(self, kind: ChildKind, *, background: bool = False) -> Child: ...


class TrappedServed(Protocol):
    @property
    def function(self) -> frames.LocalFunction: ...


class TrappedCall(Protocol):
    """What is needed to repeat a call that trapped."""

    body: bytes | list[bytes | bytearray]

    @property
    def served(self) -> TrappedServed: ...

    @property
    def head(self) -> bytes: ...


class _Trapped(NamedTuple):
    """A call to be repeated."""

    order: frames.Repeat
    who: str
    """Function and call, for people."""
    fields: dict[str, Any]
    """The same for records."""


class RepeatedTraps:
    def __init__(self, processes: Births, secrets: Secrets) -> None:
        """`secrets` returns the values that functions' manifests name, by function."""
        self._processes = processes
        self._secrets = secrets
        self._next: _Trapped | None = None
        """The call that is being repeated, or will be."""
        self._came = asyncio.Event()
        self._looked: dict[tuple[str, int], float] = {}
        """When a trap of a version of a function was last examined (`clock.monotonic`)."""

    def note(self, call: TrappedCall, who: str, fields: dict[str, Any]) -> None:
        """Let a call that trapped be examined, unless another one is, or one of the same function just was.

        `who` is function and call, for people; `fields` are the same for records.
        """
        function, now = call.served.function, clock.monotonic()
        manifest, key = function.manifest, (function.name, function.version)
        if self._next is not None or now - self._looked.get(key, -AGAIN) < AGAIN:
            return
        self._looked = {key: at for key, at in self._looked.items() if now - at < AGAIN} | {key: now}
        pieces = [call.body] if isinstance(call.body, bytes) else call.body
        if function.image:
            # Far too slow for the interpreter.
            return
        if manifest.sql != "none" or manifest.http is not None or sum(map(len, pieces)) > BODY:
            text = "%s: `skerry-edge call` with the same request says in which function of the module it trapped"
            log.warning(text, who, extra=fields)
            return
        secrets = self._secrets([function]).get(function.name, {})
        order = frames.Repeat(function, call.head, b"".join(pieces), secrets)
        self._next = _Trapped(order, who, fields)
        self._came.set()

    async def run(self) -> None:
        """Examine noted calls until cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            if self._next is not None:
                try:
                    await self._look(self._next)
                except (NotBorn, frames.ChildGone, TimeoutError) as error:
                    log.debug("%s: where it trapped can't be found out: %s", self._next.who, error)
                except Exception:
                    log.exception("%s: where it trapped can't be found out", self._next.who)
                self._next = None

    async def _look(self, trapped: _Trapped) -> None:
        """Repeat a call, and log where it trapped. Raises: NotBorn, ChildGone or TimeoutError, when that fails."""
        limit = max(LIMIT, trapped.order.function.manifest.time_limit_ms / 1000)
        with contextlib.closing(await self._processes.birth("repeater", background=True)) as child:
            reply = await child.ask(frames.REPEAT, trapped.order, limit)
        if place := frames.told(reply, frames.REPEATED, _decode).place:
            log.warning("%s: it trapped in %s of its module", trapped.who, place, extra=trapped.fields)
