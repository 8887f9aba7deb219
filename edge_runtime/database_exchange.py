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


def exchange(state: Path, prepared: Path) -> Path:
    """Exchange the folder of a node's database with the prepared one; return where the old one is.

    Nobody may have either of the databases open. Raises: OSError, when the file system can't; both are then unchanged.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    # It has that name for a moment before it is exchanged, so that no name ever means two things: the name of what is
    # prepared may be removed, `db.before-…` never is.
    kept = state / f"db.before-{moment}"
    prepared.rename(kept)
    try:
        _rename_exchange(kept, state / wal.FILE.parent)
    except OSError:
        kept.rename(prepared)
        raise
    return kept


def _rename_exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
