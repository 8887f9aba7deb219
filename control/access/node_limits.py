"""How often a node may do what leaves a row in the audit log, at this replica: whoever has a credential could fill it.

Who is refused tries again later: a node keeps what it has to tell until control takes it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from control.problems import ProblemError

Act = Literal["SQL that was run", "credentials"]
MOST: dict[Act, int] = {"SQL that was run": 120, "credentials": 20}
"""Rows of a node in an hour; so many at once, where it had none for an hour."""
HOUR = 3600.0
MOST_NODES = 20_000
"""Nodes and join tokens that are counted; with more, all are counted anew."""

log = logging.getLogger("skerry.control")


@dataclass(slots=True)
class _Left:
    """How many rows were left at a time."""

    count: float
    at: float
    told: bool = False
    """Whether the log says already that it is too many."""


class NodeLimits:
    """Counts what nodes do."""

    def __init__(self, passed: Callable[[], float]) -> None:
        """`passed` tells the time in seconds."""
        self._passed = passed
        self._left: dict[tuple[Act, str], _Left] = {}

    def take(self, act: Act, id: str, who: str) -> None:
        """Count an act of the node, or by the join token, with this id; `who` names it.

        Raises: ProblemError too_many_acts, when there were too many.
        """
        now, most = self._passed(), MOST[act]
        if len(self._left) >= MOST_NODES:
            self._left.clear()
        left = self._left.setdefault((act, id), _Left(most, now))
        left.count = min(most, left.count + (now - left.at) * most / HOUR)
        left.at = now
        if left.count < 1:
            if not left.told:
                log.warning("%s has left as many rows about %s in the audit log as it may, %d an hour", who, act, most)
            left.told = True
            wait = int((1 - left.count) * HOUR / most) + 1
            raise ProblemError(
                "too_many_acts",
                f"{who}: control takes {most} rows about {act} an hour; ask again in {wait} s",
                retry_after=wait,
            )
        if left.count > most / 2:
            left.told = False
        left.count -= 1
