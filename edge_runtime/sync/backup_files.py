"""Makes a database of a backup's files, for a restore: fetches them, has a program apply and check them behind the
fence.

Files that are whole stay until the restore is over, so that one that was broken off, also by the end of the process,
goes on where it was. Room on the disk is checked before the first byte is fetched.
"""

import asyncio
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from control.protocol import faults, wire
from edge_runtime import files, wal
from edge_runtime.disk_space import fits
from edge_runtime.errors import CodedError
from edge_runtime.ipc.oneshot_program import OneshotProgram
from edge_runtime.ipc.restore_messages import Assembled
from edge_runtime.sync.control_client import ControlClient, NoAnswer, continues

PROGRAM: Final = "edge_runtime.oneshot.assemble"
PARALLEL: Final = 4
"""Downloads at once."""
CHUNK: Final = 256 * 1024
"""Bytes that are read at once."""
RESERVE: Final = 64 * 1024 * 1024
"""Bytes of the disk that a restore leaves free for the node."""
_NAME: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.ltx")

_decode: Final = msgspec.json.Decoder(Assembled).decode


class RestoreFailed(CodedError):
    """The database can't be brought back; nothing of the node's was changed."""


async def fetch(
    client: ControlClient, order: wire.RestoreOrder, folder: Path, told: Callable[[int], None] = lambda _: None
) -> None:
    """Fetch the files of an order to a folder, except those that it has already; `told` gets the bytes that are there.

    Raises: NoAnswer, ControlRefused, when the way to a file breaks: fetch again, with a fresh order, as URLs expire and
    files are merged; RestoreFailed, when they can't be kept, or can't be the backup's.
    """
    wanted = {folder / _own_name(file): file for file in order.files}
    try:
        await asyncio.to_thread(_make_room, folder, wanted)
        done = sum(file.size for path, file in wanted.items() if path.exists())
        told(done)
        places = asyncio.Semaphore(PARALLEL)

        async def one(path: Path, file: wire.RestoreFile) -> None:
            nonlocal done
            async with places:
                await _fetch(client, path, file)
            done += file.size
            told(done)

        try:
            async with asyncio.TaskGroup() as group:
                for path, file in wanted.items():
                    if not path.exists():
                        group.create_task(one(path, file))
        except ExceptionGroup as several:
            # One is enough for a person; the others are about the same network or disk.
            raise several.exceptions[0] from None
    except OSError as error:
        raise RestoreFailed(_code(error), f"The files of the backup can't be kept in {folder}: {error}.") from None


async def assemble(order: wire.RestoreOrder, folder: Path, lock: int) -> tuple[Path, Assembled]:
    """Make the database of the order's files, which are in the folder; return a folder with nothing but the database,
    and what was found in it. `lock` is as in `OneshotProgram`. Raises: RestoreFailed."""
    place = folder / "db"
    try:
        most = await asyncio.to_thread(_clear, folder, place)
        arguments = [str(folder), "--bytes", str(most), "--parent", str(os.getpid())]
        program = OneshotProgram(PROGRAM, lock, arguments)
        answer = await program.run()
        made = _made(answer, program.status)
        if made.findings:
            text = f"The database that the backup has isn't whole: {' '.join(made.findings)}"
            raise RestoreFailed("database_damaged", text)
        if made.transaction != order.position.transaction:
            text = f"The files of the backup come to transaction {made.transaction}, not {order.position.transaction}."
            raise RestoreFailed("backup_damaged", text)
        await asyncio.to_thread(_move, folder / wal.FILE.name, place)
    except OSError as error:
        raise RestoreFailed(_code(error), f"The database can't be made in {folder}: {error}.") from None
    faults.reach("edge.restoring.assembled")
    return place, made


def _own_name(file: wire.RestoreFile) -> str:
    """Return a file's name without its level. Raises: RestoreFailed, when it isn't one of a backup's file."""
    name = file.name.rpartition("/")[2]
    if not _NAME.fullmatch(name):
        raise RestoreFailed("answer_unknown", f"Control names a file that no backup has: {file.name!r}.")
    return name


def _make_room(folder: Path, wanted: dict[Path, wire.RestoreFile]) -> None:
    """Remove what isn't wanted, and check that the disk has room for what is missing, and for the database at its
    least. Raises: RestoreFailed; OSError."""
    files.make_folder(folder)
    parts = {_part(path) for path in wanted}
    for path in list(folder.iterdir()):
        if path in wanted and path.stat().st_size == wanted[path].size:
            continue
        if path in parts:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    missing = sum(file.size for path, file in wanted.items() if not path.exists())
    # A snapshot is packed, so it is no larger than the database that comes of it.
    needed, free = missing + max((file.size for file in wanted.values()), default=0) + RESERVE, files.free_bytes(folder)
    if not fits(needed, free):
        text = f"Bringing the database back takes {needed >> 20} MiB of {folder}, which has {free >> 20} MiB free."
        raise RestoreFailed("disk_full", f"{text} Free some, such as earlier databases (db.before-…).")


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


async def _fetch(client: ControlClient, path: Path, file: wire.RestoreFile) -> None:
    """Raises: NoAnswer; ControlRefused; RestoreFailed; OSError."""
    part = _part(path)
    start = part.stat().st_size if part.exists() else 0
    if start >= file.size:
        part.unlink()
        start = 0
    async with client.open_artifact(file.url, start) as response:
        if start and not continues(response, start):
            start = 0
        size = start
        with part.open("ab" if start else "wb") as target:
            async for chunk in response.content.iter_chunked(CHUNK):
                size += len(chunk)
                if size > file.size:
                    break
                await asyncio.to_thread(target.write, chunk)
            target.flush()
            await asyncio.to_thread(os.fsync, target.fileno())
    if size > file.size:
        part.unlink()
        text = f"The file {file.name} of the backup has more than the {file.size} bytes that control has listed."
        raise RestoreFailed("backup_damaged", text)
    if size < file.size:
        raise NoAnswer("unreachable", f"the file {file.name} of the backup ended after {size} of {file.size} bytes")
    await asyncio.to_thread(part.replace, path)
    faults.reach("edge.restoring.fetched")


def _clear(folder: Path, place: Path) -> int:
    """Remove what an earlier attempt has made; return how many bytes the database may have. Raises: OSError."""
    shutil.rmtree(place, ignore_errors=True)
    database = folder / wal.FILE.name
    for path in (database, wal.log_of(database), wal.index_of(database)):
        path.unlink(missing_ok=True)
    return max(0, files.free_bytes(folder) - RESERVE)


def _made(answer: bytes, status: int) -> Assembled:
    """Raises: RestoreFailed, when nothing was made."""
    try:
        return _decode(answer)
    except msgspec.MsgspecError:
        pass
    try:
        failed = msgspec.json.decode(answer, type=dict[str, bool | str])
        raise RestoreFailed(str(failed["code"]), str(failed["message"]))
    except (msgspec.MsgspecError, KeyError):
        text = f"The process that made the database of the backup's files ended with status {status}; the log has more."
        raise RestoreFailed("restore_failed", text) from None


def _move(database: Path, place: Path) -> None:
    files.make_folder(place)
    database.rename(place / database.name)
    files.sync_folder(place)


def _code(error: OSError) -> str:
    return "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
