"""Digests of plans, by which whoever was shown a plan has it done as shown, or not at all."""

import hashlib
from collections.abc import Iterable

from control.problems import ProblemError
from control.protocol import wire
from control.sync.effects.losses import LostRows
from control.sync.effects.stalls import ExpectedStall


def digest(*parts: object) -> str:
    """The sha256 of what a plan says, in hex."""
    return hashlib.sha256(wire.canonical(parts)).hexdigest()


def of_losses(losses: Iterable[LostRows]) -> list[object]:
    """What a digest has of losses: not how many rows nodes have, which changes all the time, but whether they do."""
    return [[loss.change, loss.statement, loss.table, loss.nodes, loss.rows != 0] for loss in losses]


def of_stalls(stalls: Iterable[ExpectedStall]) -> list[object]:
    """What a digest has of stalls: not their seconds, which change with each row."""
    return [[stall.change, stall.statement, stall.table] for stall in stalls]


def refuse_other(shown: str | None, now: str, what: str) -> None:
    """Check that a plan is what it was when it was `shown`; None: nobody was shown one.

    Raises: ProblemError plan_changed, when it is another by `now`.
    """
    if shown not in (None, now):
        raise ProblemError(
            "plan_changed",
            f"{what} would do something else than the plan that was shown: nothing was done; look at the new plan",
            field="plan_digest",
        )
