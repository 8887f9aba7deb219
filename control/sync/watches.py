"""Watches of nodes: rules over the current watches, which a replica has in memory.

A watch is an operator's question to nodes about their records (`wire.Question`). It never changes, except for its rate
and its lease. So the ids of a node's watches say what the node must know, and each of its polls has their digest.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import msgspec

from control.protocol import wire


class WatchRow(NamedTuple):
    """A watch as it is stored."""

    id: str
    viewer: str
    """The name of the replica that serves the watch's view."""
    operator: str
    """The operator's name."""
    node_id: str | None
    """The node that is watched; None for all nodes of the groups."""
    group_ids: list[str] | None
    """The groups whose nodes it may concern; None for all."""
    question: dict[str, Any]
    rate: float
    """Maximum records per second that a node may send."""


class WatchedNode(Protocol):
    """What decides whether a watch concerns a node."""

    id: str
    group_id: str


class CachedWatch:
    """A watch in memory."""

    __slots__ = ("group_ids", "id", "node_id", "operator", "question", "rate", "replica")

    def __init__(self, row: WatchRow) -> None:
        self.id = row.id
        self.replica = row.viewer
        self.operator = row.operator
        self.node_id = row.node_id
        self.group_ids = None if row.group_ids is None else frozenset(row.group_ids)
        self.question = msgspec.convert({**row.question, "id": row.id, "rate": row.rate}, wire.Question)
        self.rate = row.rate

    def concerns(self, node: WatchedNode) -> bool:
        """Return whether the watch concerns this node in its current group."""
        return self.node_id in (None, node.id) and (self.group_ids is None or node.group_id in self.group_ids)


class Watches:
    """The current watches."""

    def __init__(self) -> None:
        self.alive: dict[str, CachedWatch] = {}
        """By id, the oldest first."""
        self._answers: dict[tuple[str, ...], tuple[str, bytes]] = {}
        """The digest and the answer to a poll, by the ids of a node's watches."""

    def take(self, rows: Iterable[WatchRow]) -> list[CachedWatch]:
        """Replace the watches by the current ones; return those that have begun or ended since the last time.

        A watch from a newer control that this one can't read is left out.
        """
        before, now = self.alive, {}
        changed = []
        for row in rows:
            known = before.get(row.id)
            if known is None:
                try:
                    known = CachedWatch(row)
                except msgspec.ValidationError:
                    continue
                changed.append(known)
            known.rate = row.rate
            now[row.id] = known
        changed += [watch for id, watch in before.items() if id not in now]
        self.alive = now
        if changed:
            self._answers.clear()
        return changed

    def of(self, node: WatchedNode) -> list[CachedWatch]:
        """Return the watches of a node."""
        return [watch for watch in self.alive.values() if watch.concerns(node)]

    def answer(self, node: WatchedNode, digest: str) -> bytes | None:
        """Return the answer to a poll of a node that knows the watches of `digest`; None if it knows them all."""
        found = self.of(node)
        if not found and not digest:
            return None
        ids = tuple(watch.id for watch in found)
        answer = self._answers.get(ids)
        if answer is None:
            now = _digest(ids)
            answer = now, msgspec.json.encode(wire.Watch(now, [watch.question for watch in found]))
            self._answers[ids] = answer
        return None if answer[0] == digest else answer[1]


def _digest(ids: tuple[str, ...]) -> str:
    return hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] if ids else ""
