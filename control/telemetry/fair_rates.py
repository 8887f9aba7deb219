"""How many records a second each node of a watch may send: pure rules.

A viewer has a budget. Where nodes would send more than that, each gets the same limit, so that quiet nodes lose nothing
and busy ones are cut to one level, the highest that the budget allows.
"""

from collections.abc import Iterable

BURST = 2.0
"""Seconds of its rate that a node may send at once."""


def level(demands: Iterable[float], budget: float) -> float:
    """The highest limit with which nodes of these demands send `budget` at most, together; all numbers are a second's.

    Where they demand less than the budget, each may send what is left besides.
    """
    ordered = sorted(demands)
    left, count = budget, len(ordered)
    for demand in ordered:
        if demand * count >= left:
            return left / count
        left -= demand
        count -= 1
    return (ordered[-1] if ordered else 0.0) + left


class SentByNode:
    """What a node has sent of a watch, and what it may still send."""

    __slots__ = ("at", "credit", "demand")

    def __init__(self, credit: float, at: float) -> None:
        self.credit = credit
        """Records that it may send now."""
        self.at = at
        """When it last sent something, by the loop's clock."""
        self.demand = 0
        """Records that it has had since demands were last looked at, with those that it left out."""

    def allow(self, lines: int, rate: float, now: float) -> int:
        """How many of these lines are taken, of a node that may send `rate` a second."""
        most = max(self.credit, 1.0, BURST * rate)
        self.credit = min(self.credit + (now - self.at) * rate, most)
        self.at = now
        taken = min(lines, int(self.credit))
        self.credit -= taken
        return taken


class NodeRates:
    """The nodes of one watch that send, as one replica sees them."""

    IDLE = 60.0
    """Seconds after which a node that sends nothing is forgotten."""
    ACTIVE = 3.0
    """Seconds for which a node that sent something counts in the sharing of the budget."""

    def __init__(self, limit: int) -> None:
        """`limit`: records of what was there already, which a node may send beyond its rate."""
        self._limit = limit
        self.nodes: dict[str, SentByNode] = {}

    def take(self, node_id: str, lines: int, skipped: int, rate: float, now: float) -> int:
        """How many of a node's lines are taken; it has left out `skipped` more by itself."""
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = SentByNode(self._limit + BURST * rate, now)
        node.demand += lines + skipped
        return node.allow(lines, rate, now)

    def note(self, node_id: str, lines: int, now: float) -> None:
        """Count what a node has sent through another replica, which has limited it."""
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = SentByNode(0.0, now)
        node.demand += lines
        node.at = now

    def demands(self, seconds: float, now: float) -> list[float]:
        """Records a second of each active node in the last `seconds`; those that are idle are forgotten."""
        for id in [id for id, node in self.nodes.items() if now - node.at > self.IDLE]:
            del self.nodes[id]
        found = []
        for node in self.nodes.values():
            if now - node.at <= self.ACTIVE:
                found.append(node.demand / seconds)
            node.demand = 0
        return found
