"""Finds out, through a fresh worker, which release the libsql file holds: the front itself never opens the file."""

import contextlib
import logging
from typing import Final

import msgspec

from edge_runtime import clock
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import NotBorn, ZygoteClient
from edge_runtime.release.applier_process import Named

log = logging.getLogger("skerry.flip")

LIMIT: Final = 30.0
PAUSE: Final = 0.1
TRIES: Final = 5
FULL_PAUSE: Final = 5.0
"""Seconds until opening the file is tried again after the disk was full."""

_decode: Final = msgspec.json.Decoder(frames.Stored).decode


class DatabaseUnfit(Exception):
    """No worker can open the libsql file; the message says why and what to do."""


async def stored(processes: ZygoteClient, named: Named) -> frames.Stored:
    """Return what the libsql file says. Raises: DatabaseUnfit, when no worker can read it."""
    why, tries = "", 0
    while tries < TRIES:
        try:
            child = await processes.birth("worker")
        except NotBorn as error:
            # That says nothing about the file.
            log.error("there is no process to read the libsql file, and it is tried again: %s", error)
            continue
        tries += 1
        with contextlib.closing(child):
            try:
                first = await child.answer(LIMIT)
                if first.kind == frames.FAILED:
                    failure = frames.decode_failure(first.body)
                    if failure.code == "disk_full":
                        log.error("nothing is served until there is room: %s", failure.message)
                        tries = 0
                        await clock.sleep(FULL_PAUSE)
                        continue
                    if failure.code != "disk_failed":
                        raise DatabaseUnfit(named(failure.code, f"{failure.message}."))
                    why = failure.message
                else:
                    reply = await child.ask(frames.QUERY_RELEASE, None, LIMIT)
                    return frames.told(reply, frames.RELEASE_IS, _decode)
            except (frames.ChildGone, TimeoutError) as error:
                why = str(error) or "it did not answer"
        await clock.sleep(PAUSE)
    raise DatabaseUnfit(f"no worker could say which release the libsql file holds: {why}")


async def until_answered(processes: ZygoteClient, named: Named) -> frames.Stored:
    """Return what the libsql file says, however long it takes to find out."""
    while True:
        try:
            return await stored(processes, named)
        except DatabaseUnfit as error:
            log.error("calls that may write wait: %s", error)
            await clock.sleep(1.0)
