"""Puts another database in the place of a node's, in one step: killed at any moment, the node has the one or the other,
whole. `skerry-edge restore` does so for a stopped node, `release.manager` for one that serves."""

import ctypes
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edge_runtime import wal

_AT_CWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def new_place(state: Path) -> Path:
    """Return where the node's present database may be kept."""
    return state / f"db.before-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}"


def exchange(state: Path, prepared: Path, kept: Path) -> None:
    """Exchange the folder of a node's database with the prepared one; the old one is `kept` from then on, a folder that
    doesn't exist yet.

    Nobody may have either of the databases open. Raises: OSError, when the file system can't; both are then unchanged.
    """
    # The prepared one has the name `kept` for a moment before it is exchanged, so that no name ever means two things:
    # the name of what is prepared may be removed, `db.before-…` isn't.
    prepared.rename(kept)
    try:
        _rename_exchange(kept, state / wal.FILE.parent)
    except OSError:
        kept.rename(prepared)
        raise


def _rename_exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
