"""Side effects of schema changes on nodes: the rows they can lose, and how long they block calls that write.

A release, a move or an amendment that has such effects is refused unless they are allowed. The check of a change finds
the statements in question, and nodes report how many rows their tables have; the effects follow from both.

A change reaches nodes with the first release of their group whose floor includes it. A node without any schema change
has no tables, so it has nothing to lose and nothing takes long there.

Start with `ChangeEffects`, `of_group` and `refuse`.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct

from control.edge_check import CheckedChange, OperatorChecks
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.counts import counted
from control.settings import LEAST_STALL_LIMIT
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.requirements import listed


class StoredFindings(NamedTuple):
    """A schema change, and what the check of its newest revision found; None if that isn't known."""

    number: int
    losses: list[dict[str, str]] | None
    stalls: list[dict[str, Any]] | None


class RegisteredFindings(NamedTuple):
    """A schema change, and what the check of its newest revision found; if that isn't known, a loss says so."""

    number: int
    losses: list[dict[str, str]]
    stalls: list[dict[str, Any]]
    known: bool


class GroupFloor(NamedTuple):
    """A group, the floor of its release, 0 without one, and the number of the newest schema change."""

    id: str
    schema_floor: int
    newest_change: int
    has_nodes: bool
    """Whether the group has a node that isn't revoked."""


class MovingNode(NamedTuple):
    """A node that may be moved to a group: its name, its schema version, and the floor of the group's release."""

    name: str
    schema_version: int
    schema_floor: int


NAMED = 20
"""Maximum nodes that an answer names for a table or a statement."""
SHOWN = 5
"""Maximum losses or statements, and nodes of each, in a problem's text."""
LEAST_STALL = LEAST_STALL_LIMIT
"""Seconds; shorter stalls aren't mentioned."""
CHECKED_AT_ONCE = 20
"""Changes that are checked concurrently; each takes a process for some tenths of a second."""
NOT_KNOWN = {
    "statement": "",
    "table": "",
    "message": "an earlier version of control registered it without looking for losses and stalls, and its check fails "
    "or hasn't come to it (control's log says why; --plan tries again): what it does to rows and calls isn't known",
}

REGISTERED = queries.load("registered_changes")
FOUND = REGISTERED.rows("found", StoredFindings)
GROUP_FLOOR = REGISTERED.rows("group_floor", GroupFloor)
GROUPS_WITH = REGISTERED.value("groups_with", str)
MOVING = REGISTERED.rows("moving", MovingNode)

log = logging.getLogger("skerry.checks")


async def registered_between(conn: Connection, above: int, upto: int) -> list[RegisteredFindings]:
    """Read the changes above one number, up to another, whose check found something or has no known result."""
    found = []
    for number, losses, stalls in await conn.fetch(FOUND, above, upto) if upto > above else []:
        known = None not in (losses, stalls)
        found.append(
            RegisteredFindings(number, [*(losses or []), *([] if known else [NOT_KNOWN])], stalls or [], known)
        )
    return found


async def group_floor(conn: Connection, group: str) -> GroupFloor | None:
    """Read the group with this name; None if there is none."""
    return await conn.fetchrow(GROUP_FLOOR, group)


async def _groups_with(conn: Connection, number: int) -> list[str]:
    """Read the ids of the groups whose releases include a change."""
    return await conn.column(GROUPS_WITH, number)


async def _moving(conn: Connection, node_id: UUID, group_id: UUID) -> MovingNode:
    """Read a node, and the floor of the release of the group that it may be moved to."""
    return await conn.one(MOVING, node_id, group_id)


class TableRows(NamedTuple):
    """How many nodes lack a change, how many of them reported the rows of a table, and the sum."""

    nodes: int
    told: int
    rows: int


class NamedRows(NamedTuple):
    """How many rows a node has in a table; -1 if it hasn't reported."""

    name: str
    rows: int


class NodeRows(Struct):
    """How many rows a node has in a table."""

    name: str
    rows: int | None
    """As the node last reported; 10,001 for more than 10,000, null if it hasn't reported."""


class LostRows(Struct):
    """What a statement of a schema change can lose, and on how many nodes."""

    change: int
    """The number of the schema change."""
    statement: str
    """Empty if it isn't a single statement."""
    table: str
    message: str
    nodes: int
    """Number of nodes in the group that would get the change."""
    rows: int | None
    """Total rows of these nodes in the table, as far as reported; null if none has reported."""
    most: list[NodeRows]
    """The nodes with the most rows, at most 20."""


LOSSES = queries.load("losses")
TABLE_ROWS = LOSSES.rows("rows", TableRows)
LOSING_NODES = LOSSES.rows("nodes", NamedRows)
ROWS_OF_NODE = LOSSES.value("of_node", int)


async def _lost_in_groups(
    conn: Connection, groups: Sequence[str], number: int, found: Sequence[Mapping[str, str]]
) -> list[LostRows]:
    """Return what those nodes of groups that lack a change can lose by it; the change's check has `found` it."""
    lost: list[LostRows] = []
    for loss in found:
        count = await conn.one(TABLE_ROWS, groups, number, loss["table"])
        if count.nodes:
            nodes = await conn.fetch(LOSING_NODES, groups, number, loss["table"], NAMED)
            lost.append(_lost(number, loss, count.nodes, count.rows if count.told else None, nodes))
    return lost


async def _lost_on_node(
    conn: Connection, node_id: UUID, name: str, number: int, found: Sequence[Mapping[str, str]]
) -> list[LostRows]:
    """Return what a node can lose by a change; the change's check has `found` it."""
    lost: list[LostRows] = []
    for loss in found:
        rows = await conn.fetchval(ROWS_OF_NODE, node_id, loss["table"])
        lost.append(_lost(number, loss, 1, None if rows < 0 else rows, [NamedRows(name, rows)]))
    return lost


def _loss_refusals(losses: Sequence[LostRows], what: str) -> list[ProblemError]:
    """Return loss_not_allowed if `what` can lose something."""
    if not losses:
        return []
    texts = [
        f"schema change {loss.change}: {loss.message}{_statement(loss)}, of {_nodes_told(loss)}" for loss in losses
    ]
    return [
        ProblemError(
            "loss_not_allowed",
            f"{what} can lose rows of nodes: {listed(texts, SHOWN, len(texts), '; ')}. Go on with allow_loss "
            "(--allow-loss) if that is meant; `skerry schema withdraw` takes a change back that no node has yet",
            field="allow_loss",
        )
    ]


def _nodes_told(loss: LostRows) -> str:
    """Return text that says which nodes can have a loss, and how many rows they have."""
    total = "an unknown number of rows" if loss.rows is None else counted(loss.rows, "row")
    named = [f"{node.name}: {rows_text(node.rows)}" for node in loss.most]
    names = f" ({listed(named, SHOWN, max(loss.nodes, len(named)))})" if named else ""
    return f"{counted(loss.nodes, 'node')} with {total}{names}"


def _statement(loss: LostRows) -> str:
    return f" ({' '.join(loss.statement[:200].split())})" if loss.statement else ""


def rows_text(rows: int | None) -> str:
    """Return as text how many rows a node has reported for a table."""
    return "unknown" if rows is None else "more than 10,000" if rows > 10_000 else str(rows)


def _lost(number: int, loss: Mapping[str, str], nodes: int, rows: int | None, most: Sequence[NamedRows]) -> LostRows:
    named = [NodeRows(node.name, None if node.rows < 0 else node.rows) for node in most]
    return LostRows(number, loss["statement"], loss["table"], loss["message"], nodes, rows, named)


class NodeEstimate(NamedTuple):
    """A node, and about how many rows it has of a table."""

    name: str
    rows: int


class NodeStall(Struct):
    """How long a node's writers would wait."""

    name: str
    rows: int
    """Approximate rows in the table."""
    seconds: float


class ExpectedStall(Struct):
    """A statement of a schema change that holds writers up on nodes."""

    change: int
    statement: str
    """Empty for the check of foreign keys after the change."""
    table: str
    message: str
    seconds: float
    """On the node where it is longest, estimated from its rows."""
    nodes: list[NodeStall]
    """The nodes where it is longest, at most 20."""


STALLS = queries.load("stalls")
LARGEST_NODES = STALLS.rows("nodes", NodeEstimate)
ESTIMATE_OF_NODE = STALLS.value("of_node", int)


async def _stalled_in_groups(
    conn: Connection, groups: Sequence[str], number: int, found: Sequence[Mapping[str, Any]]
) -> list[ExpectedStall]:
    """Return how long a change would block those nodes of groups that lack it; the change's check has `found` it."""
    expected: list[ExpectedStall] = []
    for stall in found:
        expected += _expected(number, stall, await conn.fetch(LARGEST_NODES, groups, number, stall["table"], NAMED))
    return expected


async def _stalled_on_node(
    conn: Connection, node_id: UUID, name: str, number: int, found: Sequence[Mapping[str, Any]]
) -> list[ExpectedStall]:
    """Return how long a change would block a node; the change's check has `found` it."""
    expected: list[ExpectedStall] = []
    for stall in found:
        rows = await conn.fetchval(ESTIMATE_OF_NODE, node_id, stall["table"])
        expected += _expected(number, stall, [NodeEstimate(name, rows)])
    return expected


def _expected(number: int, stall: Mapping[str, Any], nodes: Sequence[NodeEstimate]) -> Iterator[ExpectedStall]:
    """Yield the stall if it is worth mentioning; `nodes`: largest first."""
    held = [NodeStall(node.name, node.rows, node.rows * float(stall["us"]) / 1e6) for node in nodes]
    told = [NodeStall(node.name, node.rows, round(node.seconds, 1)) for node in held if node.seconds >= LEAST_STALL]
    if told:
        yield ExpectedStall(number, stall["statement"], stall["table"], stall["message"], told[0].seconds, told)


def _stall_refusals(stalls: Sequence[ExpectedStall], what: str, limit: float) -> list[ProblemError]:
    """Return stall_not_allowed if `what` would block the writers of a node for more than `limit` seconds.

    All changes are one transaction on a node, so their seconds add up.
    """
    sums: dict[str, float] = {}
    for stall in stalls:
        for node in stall.nodes:
            sums[node.name] = sums.get(node.name, 0.0) + node.seconds
    longest = max(sums, key=lambda name: sums[name], default="")
    if not longest or sums[longest] <= limit:
        return []
    texts = [
        f"schema change {stall.change}: {stall.message}, "
        f"{listed([f'{node.name}: about {node.seconds:g} s' for node in stall.nodes], SHOWN, len(stall.nodes))}"
        for stall in sorted(stalls, key=lambda stall: -stall.seconds)
    ]
    return [
        ProblemError(
            "stall_not_allowed",
            f"{what} would hold calls that write up for about {round(sums[longest], 1):g} s on node {longest}, and "
            f"{limit:g} s are allowed (SKERRY_STALL_LIMIT): {listed(texts, SHOWN, len(texts), '; ')}. Change the table "
            "in steps, or go on with allow_stall (--allow-stall) if that may be",
            field="allow_stall",
        )
    ]


class ChangeEffects(Struct):
    """What one or more schema changes can do to nodes."""

    losses: list[LostRows]
    """What nodes can lose."""
    stalls: list[ExpectedStall]
    """What blocks writers of a node for 0.1 s or more."""


Found = Mapping[int, ChangeEffects]
"""By the number of the schema change; changes for which the check found nothing may be left out."""
NOTHING: Found = {}


async def of_group(
    conn: Connection,
    group_id: str,
    registered: Sequence[RegisteredFindings],
    number: int | None = None,
    checked: CheckedChange | None = None,
) -> Found:
    """Return the effects, by `registered` change above the group's present floor, of releases with higher floors.

    `number` and `checked` are those of a schema change, or of a new text for one, that will be registered with the
    release. Call it in a separate transaction: the release's must not conflict with nodes that report meanwhile.
    """
    changes = {change.number: (change.losses, change.stalls) for change in registered}
    if number is not None and checked is not None:
        changes[number] = checked.losses, checked.stalls
    return {
        number: ChangeEffects(
            await _lost_in_groups(conn, [group_id], number, lost),
            await _stalled_in_groups(conn, [group_id], number, stalled),
        )
        for number, (lost, stalled) in changes.items()
    }


async def of_floors(conn: Connection, found: Found, old: int, new: int) -> ChangeEffects:
    """Return those of `found` whose changes are above one floor of the group, up to another.

    Raises: ProblemError database_busy, when more changes have been added since.
    """
    effects = ChangeEffects([], [])
    for change in await registered_between(conn, old, new):
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
    """Return the effects on a node of a move to a group."""
    node = await _moving(conn, node_id, group_id)
    effects = ChangeEffects([], [])
    if node.schema_version:
        for change in await registered_between(conn, node.schema_version, node.schema_floor):
            effects.losses += await _lost_on_node(conn, node_id, node.name, change.number, change.losses)
            effects.stalls += await _stalled_on_node(conn, node_id, node.name, change.number, change.stalls)
    return effects


async def of_amendment(conn: Connection, number: int, checked: CheckedChange) -> ChangeEffects:
    """Return the effects of a new text of a change on nodes that lack the change although their release has it.

    They get the newest text when they retry, without another release.
    """
    groups = await _groups_with(conn, number) if checked.losses or checked.stalls else []
    return ChangeEffects(
        await _lost_in_groups(conn, groups, number, checked.losses),
        await _stalled_in_groups(conn, groups, number, checked.stalls),
    )


def refusals(
    effects: ChangeEffects, what: str, limit: float, allow_loss: bool, allow_stall: bool
) -> list[ProblemError]:
    """Return why `what` (a release, a move, an amendment) may not have these effects.

    The problems are loss_not_allowed and stall_not_allowed.
    `limit`: the seconds for which it may block the writers of a node without `allow_stall`.
    """
    lost = [] if allow_loss else _loss_refusals(effects.losses, what)
    return lost + ([] if allow_stall else _stall_refusals(effects.stalls, what, limit))


def refuse(effects: ChangeEffects, what: str, limit: float, *, allow_loss: bool, allow_stall: bool) -> None:
    """Raise the first of the `refusals`, if any. Raises: ProblemError."""
    for problem in refusals(effects, what, limit, allow_loss, allow_stall):
        raise problem


def plan_digest(effects: ChangeEffects, *parts: object) -> str:
    """Return the sha256 of a plan, its effects and the other `parts`, in hex.

    A plan is carried out as it was shown, or not at all. So the digest covers what a person decides by: for losses
    whether nodes have rows, not how many, which changes all the time; and for stalls not their seconds, which change
    with each row.
    """
    losses = [[loss.change, loss.statement, loss.table, loss.nodes, loss.rows != 0] for loss in effects.losses]
    stalls = [[stall.change, stall.statement, stall.table] for stall in effects.stalls]
    return hashlib.sha256(wire.canonical((*parts, losses, stalls))).hexdigest()


def refuse_other_plan(shown: str | None, now: str, what: str) -> None:
    """Check that a plan still has the digest that it had when it was `shown`; None: no plan was shown.

    Raises: ProblemError plan_changed, when the digest is a different one `now`.
    """
    if shown not in (None, now):
        raise ProblemError(
            "plan_changed",
            f"{what} would do something else than the plan that was shown: nothing was done; look at the new plan",
            field="plan_digest",
        )


# Changes that an earlier version of control registered without checking effects: they are checked when a release, a
# move or a plan first includes them, and the results are stored.


class UncheckedRevision(NamedTuple):
    """The newest revision of a schema change that wasn't checked for effects."""

    number: int
    revision: int


class ChangeText(NamedTuple):
    """The newest text of a schema change."""

    number: int
    sql: str


class Unchecked(NamedTuple):
    """The first `CHECKED_AT_ONCE` changes that aren't checked yet, and the texts of all changes up to them."""

    changes: list[UncheckedRevision]
    texts: list[ChangeText]


NONE_UNCHECKED = Unchecked([], [])

UNCHECKED = REGISTERED.rows("unchecked", UncheckedRevision)
TEXTS = REGISTERED.rows("texts", ChangeText)


async def check_for_group(db: Database, checks: OperatorChecks, group: str) -> None:
    """Check the changes above the floor of a group's release that aren't checked yet."""

    async def read(conn: Connection) -> Unchecked:
        floor = await group_floor(conn, group)
        return NONE_UNCHECKED if floor is None else await _unchecked_between(conn, floor.schema_floor, 2**31)

    await _check(db, checks, await db.read(read))


async def check_for_move(db: Database, checks: OperatorChecks, node_id: UUID, group_id: UUID) -> None:
    """Check the changes that the move to a group brings to a node and that aren't checked yet."""

    async def read(conn: Connection) -> Unchecked:
        node = await _moving(conn, node_id, group_id)
        if not node.schema_version:
            return NONE_UNCHECKED
        return await _unchecked_between(conn, node.schema_version, node.schema_floor)

    await _check(db, checks, await db.read(read))


async def _unchecked_between(conn: Connection, above: int, upto: int) -> Unchecked:
    found = await conn.fetch(UNCHECKED, above, upto, CHECKED_AT_ONCE)
    return Unchecked(found, await conn.fetch(TEXTS, found[-1].number) if found else [])


async def _check(db: Database, checks: OperatorChecks, found: Unchecked) -> None:
    """Check changes; one whose check fails stays unchecked."""
    for change in found.changes:
        earlier = [(text.number, text.sql) for text in found.texts if text.number < change.number]
        sql = next(text.sql for text in found.texts if text.number == change.number)
        try:
            checked = await checks.schema(earlier, sql)
        except ProblemError as error:
            log.warning(
                "schema change %d was registered by an earlier version, and its check fails: %s [%s]",
                change.number,
                error.detail,
                error.code,
            )
            continue
        values = *change, checked.losses, checked.stalls
        await db.transaction(lambda conn: conn.execute(REGISTERED["keep"], *values))  # noqa: B023
