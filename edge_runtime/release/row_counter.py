"""Counts the rows of the node's tables in a child of its own, beside the calls.

The child has the priority of others: opening the file takes SQLite's lock of writers for a moment, in which a child
that runs only when nothing else does could be stopped.
"""

import contextlib
from typing import Final

import msgspec

from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import NotBorn, ZygoteClient

LIMIT: Final = 60.0
"""Seconds that it may take; 200 tables of 10,000 rows take a tenth of one."""

_decode: Final = msgspec.json.Decoder(frames.Counted).decode


async def count(processes: ZygoteClient) -> frames.Counted | None:
    """Return about how many rows each table has, by its name in lower case; None where that can't be found out now."""
    try:
        child = await processes.birth("applier")
    except NotBorn:
        return None
    with contextlib.closing(child):
        try:
            reply = await child.ask(frames.COUNT, None, LIMIT)
            return None if reply.kind == frames.FAILED else frames.told(reply, frames.COUNTED, _decode)
        except (frames.ChildGone, TimeoutError):
            return None
        finally:
            child.kill()
