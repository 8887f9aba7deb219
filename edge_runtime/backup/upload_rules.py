"""What an upload of a backup's file comes to, which files to ask places for, and how far the store is behind. Pure.

There is no I/O and no clock here: `uploader` acts on the results. Durations are in seconds.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from control.protocol import ltx, wire
from edge_runtime.sync import retries

MOST_BYTES: Final = 5 * 1024**3
"""Bytes of a file at most: what S3 takes in one piece."""
SHIPMENT: Final = 0
"""The level of files with what was written; the others are snapshots."""
BASE: Final = 1.0
CAP: Final = 60.0
"""A file that couldn't be put is tried again after 1 s, 2 s, … 60 s, each time shortened by up to a quarter."""
ASKED_CAP: Final = 3600.0
"""The most seconds that a node waits because control or the store asks for it (Retry-After)."""
RENEWED: Final = 60.0
"""Seconds before its end from which a URL isn't used any more; half of its life where that is shorter."""
SLOWEST: Final = 2 * 1024 * 1024
"""Bytes a second that whoever takes a file needs at least to pass it on before it answers."""
CHUNK: Final = 64 * 1024
"""Bytes that are sent at once: their encryption delays a call by less than 0.1 ms."""
TEXT: Final = 500
"""Characters of `wire.BackupState.error`."""


class Outcome(Enum):
    """What the answer to an upload means."""

    THERE = auto()
    """There is a file with this name: perhaps this one, whose answer was lost."""
    ENDED = auto()
    """The file's history has ended: this node has begun another one."""
    NO_PLACE = auto()
    """The URL isn't valid any more: ask for another one."""
    LATER = auto()
    """Something is away, or refuses the file for now."""


class Comparison(Enum):
    """What the store has under a file's name."""

    SAME = auto()
    OTHER = auto()
    UNKNOWN = auto()
    """It has the same size, and the store doesn't say its digest."""


class WaitingName(Protocol):
    """What is asked of a file that waits."""

    @property
    def level(self) -> int: ...

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...


def name_of(file: WaitingName) -> str:
    """Return a file's name in its history, as control knows it."""
    return f"{file.level}/{ltx.name(file.first, file.last)}"


class UploadPlace(NamedTuple):
    """Where a file may be put."""

    url: str
    until: float
    """When to ask for another one, by the node's clock (`clock.monotonic`)."""


def meaning(status: int, code: str) -> Outcome:
    """Return what an unsuccessful answer to the upload of a file means."""
    if status == 412:
        return Outcome.THERE
    if code == "backup_ended":
        return Outcome.ENDED
    # The store says 403 for a URL whose time is up; 401, 403 and 404 of control have codes of their own.
    if status == 403 and code == "http_403":
        return Outcome.NO_PLACE
    return Outcome.LATER


def comparison(size: int, md5: str, found: wire.UploadedFile) -> Comparison:
    """Return whether what the store has is the file of this size and MD5 (in hexadecimal)."""
    if found.size != size:
        return Comparison.OTHER
    if not found.md5:
        return Comparison.UNKNOWN
    return Comparison.SAME if found.md5 == md5 else Comparison.OTHER


def names_to_ask(waiting: Sequence[WaitingName], interval: float, life: float) -> list[str]:
    """Return the names of files to ask places for: those that wait, then the shipments to come while places are valid.

    `waiting` are files of one history in order, at least one; `life` is how long the last places were valid, 0 if there
    were none yet. A node that ships every ten seconds so asks every ten minutes. One that writes so much that
    checkpoints ship meanwhile has merged files, whose names nobody knows beforehand: it asks each time.
    """
    names = [name_of(file) for file in waiting[: wire.MOST_UPLOADS]]
    newest = max(file.last for file in waiting)
    merged = any(file.level == SHIPMENT and file.first < file.last for file in waiting)
    if merged or len(waiting) > wire.MOST_UPLOADS or interval <= 0:
        return names
    coming = int(min(wire.MOST_UPLOADS - len(names), max(0.0, life - RENEWED) / interval))
    return names + [f"{SHIPMENT}/{ltx.name(newest + at, newest + at)}" for at in range(1, coming + 1)]


def valid_until(now: float, life: float) -> float:
    """Return until when a place is used that was asked for at `now`."""
    return now + life - min(RENEWED, life / 2)


def pause(failures: int, jitter: float, retry_after: float | None) -> float:
    """Return the seconds to wait after so many consecutive failures (1, 2, …); `jitter` is in [0, 1)."""
    own = retries.backoff(failures, jitter, BASE, CAP)
    return own if retry_after is None else max(own, min(retry_after, ASKED_CAP) * (1.0 + jitter / 4))


def answer_limit(size: int, shortest: float) -> float:
    """Return how many seconds the answer to an upload of `size` bytes may take after the last one was sent."""
    return shortest + size / SLOWEST


def piece(bandwidth: int) -> int:
    """Return the bytes to send at once within `bandwidth` bytes a second; 0 means unbounded."""
    return min(CHUNK, max(1, bandwidth // 8)) if bandwidth else CHUNK


def too_large(name: str, size: int) -> str:
    """Return what to say of a file that no store takes in one piece."""
    return (
        f"{name} of this node's backup has {size} bytes, and a store takes {MOST_BYTES} at most in one piece: this "
        "database is too large to be backed up like this. Delete rows and compact it, or turn the group's backup off "
        "(`skerry group backup --off`) and make backups by `skerry-edge backup`"
    )


def told(*texts: str) -> str:
    """Return what is wrong in one text, which fits into `wire.BackupState.error`."""
    text = "; ".join(text for text in texts if text)
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"
