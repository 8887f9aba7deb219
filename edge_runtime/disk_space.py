"""How much of the state directory's disk a release may fill. Pure."""

from typing import Final

DISK_RESERVE: Final = 16 * 1024 * 1024
"""Bytes of a node's disk that stay free, for the libsql database and the reports to control."""


def fits(needed: int, free: int) -> bool:
    """Return whether `needed` more bytes may be written if `free` bytes are free; zero bytes always fit."""
    return needed <= 0 or needed + DISK_RESERVE <= free
