"""What schema changes can do to the nodes that a release, a move or an amendment brings them to, and what of that is
refused unless it is allowed.

A change is brought to nodes by the first release of their group whose floor includes it. A node without any schema
change has no tables: it has nothing to lose, and nothing takes long there.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

from msgspec import Struct

from control.edge_check import CheckedChange
from control.problems import ProblemError
from control.storage.connection import Connection
from control.sync.effects import losses, registered_changes, stalls
from control.sync.effects.losses import LostRows
from control.sync.effects.registered_changes import RegisteredFindings
from control.sync.effects.stalls import ExpectedStall


class ChangeEffects(Struct):
    """What one or more schema changes can do to nodes."""

    losses: list[LostRows]
    """What nodes can lose."""
    stalls: list[ExpectedStall]
    """What holds writers of a node up for 0.1 s or more."""


Found = Mapping[int, ChangeEffects]
"""By the number of the schema change; changes with whose check nothing was found may be left out."""
NOTHING: Found = {}


async def of_group(
    conn: Connection,
    group_id: str,
    registered: Sequence[RegisteredFindings],
    number: int | None = None,
    checked: CheckedChange | None = None,
) -> Found:
    """What releases of a group can do whose floors are above the one that it has, by the `registered` changes above
    that. `number`, `checked`: of a schema change, or another text of one, that will be registered with the release.

    Read in a transaction of its own: the release's must not conflict with nodes that report meanwhile.
    """
    changes = {change.number: (change.losses, change.stalls) for change in registered}
    if number is not None and checked is not None:
        changes[number] = checked.losses, checked.stalls
    return {
        number: ChangeEffects(
            await losses.of_groups(conn, [group_id], number, lost),
            await stalls.of_groups(conn, [group_id], number, stalled),
        )
        for number, (lost, stalled) in changes.items()
    }


async def of_floors(conn: Connection, found: Found, old: int, new: int) -> ChangeEffects:
    """Those of `found` whose changes are above one floor of the group, up to another.

    Raises: ProblemError database_busy, when there are others by now.
    """
    effects = ChangeEffects([], [])
    for change in await registered_changes.between(conn, old, new):
        if change.number not in found:
            raise ProblemError(
                "database_busy",
                f"schema change {change.number} came to this release while it was being made; nothing was changed, try "
                "again",
            )
        effects.losses += found[change.number].losses
        effects.stalls += found[change.number].stalls
    return effects


async def of_move(conn: Connection, node_id: UUID, group_id: UUID) -> ChangeEffects:
    """What the move to a group can do to a node."""
    node = await registered_changes.moving(conn, node_id, group_id)
    effects = ChangeEffects([], [])
    if node.schema_version:
        for change in await registered_changes.between(conn, node.schema_version, node.schema_floor):
            effects.losses += await losses.of_node(conn, node_id, node.name, change.number, change.losses)
            effects.stalls += await stalls.of_node(conn, node_id, node.name, change.number, change.stalls)
    return effects


async def of_amendment(conn: Connection, number: int, checked: CheckedChange) -> ChangeEffects:
    """What another text of a change can do to the nodes that lack it and whose release has it already: they get the
    newest text when they try again, without another release."""
    groups = await registered_changes.groups_with(conn, number) if checked.losses or checked.stalls else []
    return ChangeEffects(
        await losses.of_groups(conn, groups, number, checked.losses),
        await stalls.of_groups(conn, groups, number, checked.stalls),
    )


def refusals(
    effects: ChangeEffects, what: str, limit: float, allow_loss: bool, allow_stall: bool
) -> list[ProblemError]:
    """Why what is meant to be done (`what`: a release, a move, an amendment) may not have these effects:
    loss_not_allowed, stall_not_allowed.

    `limit`: the seconds for which it may hold the writers of a node up without `allow_stall`.
    """
    lost = [] if allow_loss else losses.refusals(effects.losses, what)
    return lost + ([] if allow_stall else stalls.refusals(effects.stalls, what, limit))


def refuse(effects: ChangeEffects, what: str, limit: float, *, allow_loss: bool, allow_stall: bool) -> None:
    """Raises: ProblemError, the first one of `refusals`."""
    for problem in refusals(effects, what, limit, allow_loss, allow_stall):
        raise problem
