"""What the console says of a node's backup: how it is in a word, what is wrong and what to do, and its restores."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final, Literal, NamedTuple

from control.api.backups import BackupHistory, DetailedBackup, NodeRestore
from control.backups.backup_faults import PROVEN_LATE, Fault, late_after
from control.backups.backup_metrics import GroupBackups
from control.backups.drills import UNTRIED
from control.protocol import wire
from control.protocol.counts import counted

RESTORE_KINDS: Final = {"ordered": "sync", "held": "held", "done": "ok", "failed": "fail", "cancelled": "past"}
"""The kind of status of each state of a restore."""
WORDS: Final[dict[Fault, str]] = {
    "missing": "nothing yet",
    "failing": "failing",
    "late": "the store is behind",
    "drill": "restore drill failed",
    "unproven": "not proven",
}
"""A word for each fault."""


class FaultyBackups(NamedTuple):
    """How many nodes' backups have the same fault."""

    fault: Fault
    groups: dict[str, int]
    """How many, by group: the most first."""

    @property
    def nodes(self) -> int:
        """How many in all groups."""
        return sum(self.groups.values())


class CountedBackups(NamedTuple):
    """The backups of a fleet."""

    nodes: int
    """Nodes with a backup that goes on."""
    wanted: int
    """Nodes that should have one."""
    faults: list[FaultyBackups]
    """Those that some have, the worst first."""

    def count(self, fault: Fault) -> int:
        """Return how many nodes' backups have a fault."""
        return next((found.nodes for found in self.faults if found.fault == fault), 0)


def counted_backups(groups: Iterable[GroupBackups], names: Collection[str] | None) -> CountedBackups:
    """Return the backups of the groups with these names; None: of all."""
    mine = [group for group in groups if names is None or group.group_name in names]
    by_fault: dict[Fault, dict[str, int]] = {
        "failing": {group.group_name: group.failing for group in mine},
        "drill": {group.group_name: group.failed_drills for group in mine},
        "late": {group.group_name: group.late for group in mine},
        "missing": {group.group_name: group.missing for group in mine},
        "unproven": {group.group_name: group.unproven_nodes for group in mine},
    }
    faults = [
        FaultyBackups(fault, dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda one: -one[1])))
        for fault, counts in by_fault.items()
    ]
    nodes = sum(group.nodes for group in mine)
    return CountedBackups(nodes, nodes + sum(group.missing for group in mine), [one for one in faults if one.groups])


class Trouble(NamedTuple):
    """Something that is wrong with a backup."""

    fault: Fault
    kind: Literal["fail", "warn", "wait"]
    title: str
    text: str
    """What was told of it; '' if nothing."""
    cure: str
    """What to do, in a sentence."""


@dataclass(frozen=True)
class ShownBackup:
    """The backup of a node, at one moment."""

    node: str
    group: str
    protocol: int
    """The version of the protocol that the node speaks."""
    backup: DetailedBackup | None
    """None: its group isn't backed up, and nothing of it is at the store."""
    restore: NodeRestore | None
    """Its last restore, which it may be about to carry out, or held at; None if there was none."""
    now: datetime

    @property
    def is_on(self) -> bool:
        """Whether the node's group is backed up."""
        return self.backup is not None and self.backup.interval > 0

    @property
    def has_data(self) -> bool:
        """Whether something can be brought back."""
        return self.reaches_back is not None

    @property
    def held(self) -> NodeRestore | None:
        """The restore that the node carries out, or at which it is held; None if there is none."""
        restore = self.restore
        return restore if restore is not None and restore.state in ("ordered", "held") else None

    @property
    def reaches_back(self) -> datetime | None:
        """About since when states can be brought back; None if nothing is at the store."""
        if self.backup is None:
            return None
        begun = [history.begun_at for history in self.backup.histories if history.reached]
        if not begun:
            return None
        oldest = min(begun)
        return max(oldest, self.now - timedelta(seconds=self.backup.retention)) if self.backup.retention else oldest

    @property
    def lag(self) -> float:
        """By how many seconds the store was behind when the node told; since the beginning, while it has nothing."""
        present = self._present
        if self.backup is None or present is None:
            return 0.0
        return (present.told_at - (present.reached_at or present.begun_at)).total_seconds()

    @property
    def _present(self) -> BackupHistory | None:
        """The history that goes on."""
        return None if self.backup is None else next((h for h in self.backup.histories if h.ended_at is None), None)

    @cached_property
    def troubles(self) -> list[Trouble]:
        """What is wrong, the worst first."""
        return list(self._troubles())

    @property
    def verdict(self) -> tuple[str, str]:
        """The kind of status, and the word: the first of these that applies."""
        if self.backup is None or not self.is_on:
            return "todo", "off"
        for trouble in self.troubles:
            return trouble.kind, WORDS[trouble.fault]
        # As after a restore: the history that goes on has still to get its snapshot to the store.
        return ("wait", WORDS["missing"]) if self.backup.reached_at is None else ("ok", "good")

    def _troubles(self) -> Iterator[Trouble]:
        backup = self.backup
        if backup is None or not self.is_on:
            return
        if backup.error:
            yield Trouble(
                "failing",
                "fail",
                "The backup doesn't go on",
                backup.error,
                "What is written stays on the node's disk, and goes to the store once this is mended. The node's log "
                "has more.",
            )
        present = self._present
        if present is None:
            yield self._missing()
            return
        if self.lag > late_after(backup.interval):
            yield Trouble(
                "late",
                "warn",
                "The store is behind the node",
                "",
                "Its network to the store is too slow for what it writes, or away. If its disk is lost now, so is what "
                "waits there.",
            )
        yield from self._proof(present)

    def _missing(self) -> Trouble:
        if self.protocol < wire.BACKUP_PROTOCOL:
            cure = "Its version of skerry-edge can't back up: upgrade it."
        else:
            cure = "It begins with its next poll, and tells about once a minute. If it doesn't, its log says why."
        return Trouble("missing", "wait", "Nothing of it is at the store yet", "", cure)

    def _proof(self, present: BackupHistory) -> Iterator[Trouble]:
        again = f"skerry data drill {self.node}"
        if present.drill_error.startswith(UNTRIED):
            text = present.drill_error.removeprefix(UNTRIED)
            yield Trouble("drill", "warn", "The last restore drill couldn't be tried", text, f"Try it now: {again}")
        elif present.drill_error:
            cure = f"Earlier states may be whole. Once its cause is mended, try it again: {again}"
            yield Trouble("drill", "fail", "The last restore drill failed", present.drill_error, cure)
        elif self.now - (present.proven_at or present.begun_at) > PROVEN_LATE:
            cure = f"Control proves each backup daily, as far as its budget for that goes. Do it now: {again}"
            yield Trouble(
                "unproven", "warn", f"No restore of it was proven for {counted(PROVEN_LATE.days, 'day')}", "", cure
            )


def said(restore: NodeRestore) -> str:
    """Return what a restore's state means, in a sentence without its full stop."""
    return {
        "ordered": "the node is to bring it back; it serves what it has until then",
        "held": "the node has it, and gets no release until somebody resumes it",
        "done": restore.message or "the node had it, and went on from there",
        "failed": restore.message or "the node couldn't; it serves what it had",
        "cancelled": "somebody resumed the node before it had it",
    }[restore.state]
