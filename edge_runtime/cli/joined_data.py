"""What `skerry-edge join` does after a node has its identity: brings its database back from its backup, if it has one.

Until that is done, or given up by a person, the file `data-awaited` in the state directory keeps the node from serving
an empty database.
"""

import asyncio
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from control.protocol import faults, wire
from edge_runtime import database_exchange, files, wal
from edge_runtime.errors import CodedError
from edge_runtime.ipc.restore_messages import Assembled
from edge_runtime.release.witness import Witness
from edge_runtime.state import DATA_AWAITED, State
from edge_runtime.sync import backup_files, identity, retries
from edge_runtime.sync.artifacts import Artifacts
from edge_runtime.sync.backup_files import RestoreFailed
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.sync.identity import Identity
from edge_runtime.sync.restores import FOLDER, RestoreRecord, planned

TRIES: Final = 4
"""Consecutive attempts without a new byte before it is left to a person."""
STOP_WAIT: Final = 5.0
"""Seconds to wait for the processes of a node that is stopping."""
PAUSE: Final = 1.0
"""Seconds between the first two of them; the pause doubles each time."""


class BroughtBack(NamedTuple):
    """The database that was brought back."""

    at: datetime
    """When it was so, by the node's clock of then."""
    bytes: int
    release: int
    """The number of its release; 0 if it has none."""
    lacking: str
    """Why not all functions of its release are there yet; empty if they are."""


def awaited(state: Path) -> bool:
    """Return whether the node's database must be brought back, or given up, before it serves."""
    return (state / DATA_AWAITED).exists()


def give_up(state: Path) -> None:
    """Let the node begin with an empty database. Raises: OSError."""
    files.remove(state / DATA_AWAITED)


async def bring_back(state: Path, who: Identity) -> BroughtBack | None:
    """Bring the node's database back; return None if there is no backup. Killed at any moment, this can be repeated.

    Raises: CodedError, when that can't be done; StateUnfit, ValueError or OSError, when the state directory can't be
    used.
    """
    database = state / wal.FILE
    if database.exists():
        # An earlier attempt was killed after the exchange, or a person has restored another backup.
        give_up(state)
        if (record := RestoreRecord.kept(state)) is None:
            return None
        return BroughtBack(record.at, database.stat().st_size, record.result.release, "")
    async with ControlClient(who.control_url, identity.ca_path(state), who.credential) as client:
        if await _latest(client) is not None:
            with State(state, STOP_WAIT) as opened:
                return await _bring_back(opened, client)
    give_up(state)
    return None


async def _bring_back(state: State, client: ControlClient) -> BroughtBack:
    folder = state.path / FOLDER / "join"
    order = await _fetch(client, folder)
    try:
        place, made = await backup_files.assemble(order, folder, state.lock)
    except RestoreFailed:
        # What was fetched is of no use.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    lacking = await _functions(client, state.path, made)
    release = 0 if made.stored.release is None else made.stored.release.number
    RestoreRecord("", order.at, datetime.now(UTC), wire.RestoreResult("done", release=release)).keep(state.path)
    Witness(state.path).settle(made.stored)
    faults.reach("edge.join.made")
    kept = database_exchange.new_place(state.path)
    database_exchange.exchange(state.path, place, kept)
    files.sync_folder(state.path)
    faults.reach("edge.join.exchanged")
    if not (kept / wal.FILE.name).exists():
        shutil.rmtree(kept, ignore_errors=True)
    shutil.rmtree(state.path / FOLDER, ignore_errors=True)
    give_up(state.path)
    return BroughtBack(order.at, made.bytes, release, lacking)


async def _latest(client: ControlClient) -> wire.RestoreOrder | None:
    """Return the latest state that the backup has; None if there is none. Raises: NoAnswer; ControlRefused."""
    for attempt in range(TRIES):
        try:
            return await client.latest_backup()
        except (NoAnswer, ControlRefused) as error:
            if attempt == TRIES - 1 or (isinstance(error, ControlRefused) and retries.final(error.status)):
                raise
        await asyncio.sleep(PAUSE * 2**attempt)
    raise AssertionError  # The last attempt above returns or raises.


async def _fetch(client: ControlClient, folder: Path) -> wire.RestoreOrder:
    """Get the files of the latest state. Raises: CodedError."""
    fetched, fruitless = 0, 0

    def told(now: int) -> None:
        nonlocal fetched
        fetched = now

    while True:
        before = fetched
        try:
            order = await _latest(client)
            if order is None:
                raise RestoreFailed("restore_failed", "The node's backup went away while it was fetched.")
            await backup_files.fetch(client, order, folder, told)
            return order
        except (NoAnswer, ControlRefused):
            fruitless = 0 if fetched > before else fruitless + 1
            if fruitless == TRIES:
                raise
        await asyncio.sleep(PAUSE * 2**fruitless)


async def _functions(client: ControlClient, state: Path, made: Assembled) -> str:
    """Get the functions of the release; return why not all of them came. The first sync gets those."""
    release = made.stored.release
    if release is None:
        return ""
    try:
        await Artifacts(state).fetch(client, [planned(function) for function in release.functions], ())
    except CodedError as failed:
        return failed.message
    return ""
