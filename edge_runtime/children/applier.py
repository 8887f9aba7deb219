"""The applier: a process for one change of release, or for steps of schema changes.

It does what each frame requests: load new functions on trial, prepare a release and commit it (`release_transaction`),
or run steps of schema changes (`apply_changes`). If it is killed before a COMMIT, the old release stays.
"""

import functools
import socket
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.children import apply_changes, probe_call, release_transaction
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence
from edge_runtime.sql import database, schema
from edge_runtime.sql.database import DatabaseOpenError

_decode_apply: Final = msgspec.json.Decoder(frames.Apply).decode
_decode_try: Final = msgspec.json.Decoder(frames.Try).decode
_decode_advance: Final = msgspec.json.Decoder(frames.Advance).decode


def serve(sock: socket.socket, _page: memoryview, _slot: int, settings: frames.ChildSettings) -> None:
    """Do what the front requests until it closes the socket; what isn't committed by then is undone."""
    try:
        # A release must be on disk once it is applied, whatever the setting for calls.
        opened = database.connect_until_exit(Path(settings.state) / database.FILE, "FULL", foreign_keys=False)
    except (DatabaseOpenError, OSError) as error:
        code = error.code if isinstance(error, DatabaseOpenError) else "database_unfit"
        frames.send_json(sock, 0, frames.FAILED, frames.ChildFailure(code, f"{error}."))
        return
    opened.rows(f"PRAGMA hard_heap_limit = {apply_changes.HEAP_BYTES}")
    opened.wal_limit = settings.wal_limit
    fence.limit_files(fence.FILE_BYTES)
    opened.file_limit_was_hit = fence.file_limit_was_hit
    fence.seal("applier", opened.lock.fileno())
    reader, tried = FrameReader(sock), probe_call.TriedFunctions()
    while (frame := reader.next()) is not None:
        tell = functools.partial(_tell, sock, frame.request)
        try:
            match frame.kind:
                case frames.TRY:
                    _try(sock, _decode_try(frame.body), tried)
                case frames.APPLY:
                    order = _decode_apply(frame.body)
                    prepared = release_transaction.prepare(
                        opened,
                        order.plan,
                        order.functions,
                        order.secrets,
                        tell,
                        tried,
                        afresh=order.afresh,
                        at=order.at,
                    )
                    frames.send_json(sock, frame.request, frames.PREPARED, prepared)
                case frames.ADVANCE:
                    apply_changes.advance(opened, _decode_advance(frame.body), tell)
                    frames.send(sock, frame.request, frames.DONE)
                case frames.FINISH:
                    apply_changes.finish(opened, tell)
                    frames.send(sock, frame.request, frames.DONE)
                case frames.COMMIT:
                    release_transaction.commit(opened)
                    frames.send(sock, frame.request, frames.COMMITTED)
                case frames.COUNT:
                    counts = schema.row_counts(opened)
                    counted = frames.Counted(counts, schema.row_estimates(opened, counts))
                    frames.send_json(sock, frame.request, frames.COUNTED, counted)
                case frames.ABORT:
                    release_transaction.undo(opened)
                    frames.send(sock, frame.request, frames.ABORTED)
                case _:
                    raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no applier knows")
        except SyncFailed as failed:
            frames.send_json(sock, frame.request, frames.FAILED, frames.ChildFailure(failed.code, failed.message))


def _try(sock: socket.socket, order: frames.Try, tried: probe_call.TriedFunctions) -> None:
    """Load the functions in turn, and tell the memory that each takes.

    Raises: SyncFailed, at the first that can't be loaded.
    """
    for local in order.functions:
        tried.load(
            local,
            order.secrets.get(local.name, {}),
            lambda need: frames.send_json(sock, 0, frames.TRIED, frames.Tried(need)),
        )


def _tell(sock: socket.socket, request: int, doing: str) -> None:
    """Tell the front what is about to be done, which it reports if that takes too long."""
    frames.send(sock, request, frames.APPLYING, b"", doing.encode())
