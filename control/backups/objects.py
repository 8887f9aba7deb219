"""The keys of backups' objects in the bucket: `backups/NODE/LINEAGE/ltx/LEVEL/FIRST-LAST.ltx`. Pure.

The folder of a lineage is one that `litestream restore` reads. A key that isn't exactly one of these is none: it is
neither read nor deleted.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from control.protocol import ltx
from control.storage.owner_mark import BACKUPS

SHIPMENT: Final = 0
"""The level of what nodes ship; 1 and 2 are files that were merged of it."""
MERGED: Final = 1
SNAPSHOT: Final = 9
"""The level of whole databases."""
LEVELS: Final = (SHIPMENT, MERGED, 2, SNAPSHOT)
_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NODE: Final = re.compile(_UUID)
_LINEAGE: Final = re.compile("[0-9a-f]{32}")


class BackupFile(NamedTuple):
    """A file of a lineage: its transactions `first` to `last`. A file from transaction 1 on is a whole database."""

    level: int
    first: int
    last: int
    size: int = 0
    """Bytes, if they are known."""

    @property
    def whole(self) -> bool:
        """Whether it holds all pages of the database."""
        return self.first == 1

    @property
    def name(self) -> str:
        """Return the level, a slash and the file's own name, as nodes say it."""
        return f"{self.level}/{ltx.name(self.first, self.last)}"


class BackupObject(NamedTuple):
    """What a key names."""

    node: str
    lineage: str
    file: BackupFile


def prefix(node: str, lineage: str = "") -> str:
    """Return what the keys of a node, or of one lineage of a node, begin with.

    Raises: ValueError, for what is no node's id or no lineage.
    """
    if not _NODE.fullmatch(node) or (lineage and not _LINEAGE.fullmatch(lineage)):
        raise ValueError(f"{node!r} and {lineage!r} name no backup")
    return f"{BACKUPS}{node}/{lineage}/ltx/" if lineage else f"{BACKUPS}{node}/"


def is_lineage(text: str) -> bool:
    """Return whether a text is the id of a lineage, as nodes make it."""
    return _LINEAGE.fullmatch(text) is not None


def key(node: str, lineage: str, file: BackupFile) -> str:
    """Return the key of a file. Raises: ValueError, as `prefix` does."""
    return prefix(node, lineage) + file.name


def parse_name(name: str, size: int = 0) -> BackupFile | None:
    """Return the file with a name such as `0/FIRST-LAST.ltx`; None if it isn't such a name."""
    level, slash, rest = name.partition("/")
    if not slash or level not in map(str, LEVELS):
        return None
    span = ltx.transactions(rest)
    if span is None or (int(level) == SNAPSHOT and span[0] != 1):
        return None
    return BackupFile(int(level), *span, size)


def parse(key: str, size: int = 0) -> BackupObject | None:
    """Return what a key names; None if it isn't the key of a backup's file."""
    parts = key.split("/", 4)
    if len(parts) != 5 or f"{parts[0]}/" != BACKUPS or parts[3] != "ltx":
        return None
    node, lineage = parts[1:3]
    if not _NODE.fullmatch(node) or not _LINEAGE.fullmatch(lineage):
        return None
    file = parse_name(parts[4], size)
    return None if file is None else BackupObject(node, lineage, file)


def files_of(listed: Iterable[tuple[str, int]], node: str, lineage: str) -> list[BackupFile]:
    """Return the files of a lineage among keys with their sizes; other keys are left out."""
    found = (parse(key, size) for key, size in listed)
    return [one.file for one in found if one is not None and (one.node, one.lineage) == (node, lineage)]
