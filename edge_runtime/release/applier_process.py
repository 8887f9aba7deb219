"""The front's side of an applier: it is started for one change of release, asked for each step, and ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, NotBorn

Named = Callable[[str, str], str]
"""Returns an error's message, by its code and its message, as `Pool.named` does."""

_decode_inventory: Final = msgspec.json.Decoder(wire.Inventory).decode


@contextlib.asynccontextmanager
async def started(birth: Awaitable[Child]) -> AsyncIterator[Child]:
    """Wait for an applier's birth, and end it with the block. Raises: SyncFailed, when there can be none."""
    try:
        child = await birth
    except NotBorn as error:
        raise SyncFailed("applier_died", f"No applier could be started: {error}; nothing was changed.") from None
    try:
        yield child
    finally:
        child.kill()
        try:
            if not child.exited.done():
                # Its transaction, if it had one, must be gone before calls run again.
                await asyncio.shield(child.exited)
        finally:
            child.close()


async def prepare(applier: Child, order: frames.Apply, limit: float, named: Named) -> wire.Inventory:
    """Have a release prepared in `limit` seconds at most; return what it leads to. Raises: SyncFailed."""
    number = order.plan.release_number
    doing = "nothing yet: another process had the writer lock"
    try:
        async with clock.timeout(limit):
            reply = await applier.ask(frames.APPLY, order, None)
            while reply.kind == frames.APPLYING:
                doing = _doing(reply)
                reply = await applier.answer()
        if reply.kind != frames.FAILED:
            return frames.told(reply, frames.PREPARED, _decode_inventory)
    except TimeoutError:
        text = (
            f"The schema changes and probes of release {number} took longer than {limit:g} s together (apply_limit), "
            f"and nothing was changed. What ran then: {doing}"
        )
        raise SyncFailed("apply_timeout", text) from None
    except frames.ChildGone:
        text = f"The process that applied release {number} died; nothing was changed. What ran then: {doing}"
        raise SyncFailed("applier_died", text) from None
    raise _failure(reply, named)


async def steps(
    applier: Child, kind: int, order: frames.Advance | None, limit: float, named: Named, tell: Callable[[str], None]
) -> None:
    """Have steps of schema changes run. `limit`: seconds for each thing of which `tell` is told that it begins.

    Raises: SyncFailed, when a step fails.
    """
    doing = "nothing yet: another process had the writer lock"
    try:
        async with clock.timeout(limit) as timer:
            reply = await applier.ask(kind, order, None)
            while reply.kind == frames.APPLYING:
                doing = _doing(reply)
                tell(doing)
                timer.reschedule(clock.monotonic() + limit)
                reply = await applier.answer()
    except TimeoutError:
        text = f"A step of a schema change took longer than {limit:g} s (apply_limit), and was undone. What ran then: "
        raise SyncFailed("apply_timeout", text + doing) from None
    except frames.ChildGone:
        text = "The process that ran a step of a schema change died; what it had committed stays. What ran then: "
        raise SyncFailed("applier_died", text + doing) from None
    if reply.kind != frames.DONE:
        raise _failure(reply, named)


def _doing(reply: frames.Frame) -> str:
    return reply.body[: frames.FAILURE_TEXT].decode(errors="replace")


def _failure(reply: frames.Frame, named: Named) -> SyncFailed:
    failure = frames.decode_failure(reply.body)
    return SyncFailed(failure.code, named(failure.code, failure.message))


async def abort(applier: Child) -> None:
    """Have the applier roll back; if it can't answer any more, its end does that."""
    with contextlib.suppress(frames.ChildGone, TimeoutError):
        await applier.ask(frames.ABORT, None, 5.0)
