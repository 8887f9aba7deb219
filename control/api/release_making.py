"""Makes a release: its contents, the checks, and what it changes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec

from control import manifest_rules, tracing
from control.api import release_bodies
from control.api.node_views import unknown_group
from control.backups import undo
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.manifest import Route
from control.rollouts import acts, rules, store
from control.rollouts.policy import AT_ONCE, Policy, rules_of
from control.rollouts.rules import State
from control.rollouts.store import StoredRollout
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import change_effects, compatibility


class GroupRow(NamedTuple):
    """A group and its target."""

    id: UUID
    release_id: UUID | None
    generation: int


class GroupToRelease(NamedTuple):
    """What a group's next release goes by."""

    id: UUID
    release_id: UUID | None
    """The newest release, which the next one changes: that of the open rollout, unless this only rehearses it, or else
    the group's own."""
    schema_floor: int
    """Its floor; 0 without one."""
    own_id: UUID | None
    """The group's own release, which its nodes run that no rollout has started."""
    own_number: int | None
    own_floor: int
    policy: dict[str, Any] | None
    """How the group's releases go out."""
    open_number: int | None
    """The release of the open rollout."""
    open_policy: dict[str, Any] | None
    open_rehearses: bool
    """Whether the open rollout only rehearses its release."""
    highest_floor: int
    """Of the releases that nodes may have run."""
    newest_change: int
    next_number: int

    @property
    def rolls_out(self) -> bool:
        """Whether a rollout brings nodes a release that isn't the group's own yet."""
        return self.open_number is not None and not self.open_rehearses


class Way(NamedTuple):
    """How a release goes out."""

    policy: Policy | None
    """None: to all nodes at once."""
    rehearsal_only: bool
    usual: Policy | None
    """How it would go out if the request said nothing about that."""

    @property
    def left_out(self) -> bool:
        """Whether the request leaves out a policy, or a rehearsal."""
        return self.usual is not None and self.policy is None

    @property
    def own(self) -> bool:
        """Whether the request has it go out in another way than it usually would."""
        return self.usual is not None and self.policy != self.usual

    def begun(self, now: datetime) -> release_bodies.ReleaseRollout | None:
        """Return the rollout that it begins; None if it goes at once."""
        policy = self.policy
        if policy is None:
            return None
        rehearse = policy.rehearse or self.rehearsal_only
        first = rules.first(rules_of(policy), rehearse=rehearse, rehearsal_only=self.rehearsal_only, now=now)
        steps = [step.text for step in rules_of(policy).steps]
        return release_bodies.ReleaseRollout(first.state, rehearse, self.rehearsal_only, steps)


AT_ONCE_AS_EVER = Way(None, rehearsal_only=False, usual=None)
"""The way of a release that nobody wants to rehearse: a rollback, or one for a group without nodes."""


class FunctionOfRelease(NamedTuple):
    """A function of a release."""

    release_id: UUID
    name: str
    version: int
    sha256: str


class FoundVersion(NamedTuple):
    """A function version that exists."""

    name: str
    version: int
    sha256: str
    bytes: int
    """Bytes of the manifests of all counted versions."""
    manifest: dict[str, Any] | None
    """None if these are too many."""


class ReleaseListRow(NamedTuple):
    """A release without its functions."""

    id: UUID
    group_name: str
    number: int
    generation: int
    schema_floor: int
    rollback_to: int | None
    reason: str
    created_by: str
    created_at: datetime
    state: State | None
    """Of its rollout; None if it went to all nodes at once, like the next two."""
    policy: dict[str, Any] | None
    rehearsal_only: bool | None


SQL = queries.load("releases")
LOCK_GROUP = SQL.value("lock_group", UUID)
TO_RELEASE = SQL.rows("to_release", GroupToRelease)
NEWEST_CHANGE = SQL.value("newest_change", int)
NUMBER = SQL.value("number", int)
ROLLBACKS = queries.load("rollbacks")
WENT_BACK = ROLLBACKS.optional("went_back", int)
ROLLBACK_TARGET = ROLLBACKS.optional("target", int)
FUNCTIONS = SQL.rows("functions", FunctionOfRelease)
VERSIONS = SQL.rows("versions", FoundVersion)
NEXT_GENERATION = SQL.value("next_generation", int)
MAKE = SQL.value("make", int)
ADD = SQL.value("add", int)
RELEASE = SQL.rows("release", ReleaseListRow)
BEFORE = SQL.rows("before", ReleaseListRow)
CHANGES_BETWEEN = SQL.rows("changes_between", release_bodies.NumberedChange)

Functions = dict[str, tuple[int, str]]
"""Version and sha256 by name."""
Versions = dict[tuple[str, int], FoundVersion]
"""Versions that exist, by name and version."""
Manifests = dict[str, dict[str, Any]]
"""The manifests of functions, by name."""

MANIFEST_BYTES = 4 * wire.MIB
"""The most bytes of the manifests of a release's functions together."""
MOST_NAMED = 1000
"""The most nodes of an undo that a plan names."""
ANY_SIZE = 2**62
"""The same limit for existing releases."""


async def make(
    conn: Connection,
    changed: Changed,
    now: datetime,
    by: str,
    body: release_bodies.NewRelease,
    capabilities: Sequence[compatibility.SameCapabilities] = (),
    found: change_effects.Found = change_effects.NOTHING,
    stall_limit: float = 0.0,
    *,
    plan: bool = False,
    keep_floor: bool = False,
    with_change: bool = False,
    has_nodes: bool = False,
    at_store: undo.AtStore | None = None,
) -> tuple[release_bodies.MadeRelease, Way]:
    """Make a release, or with `plan` only return what it would be, and how it goes out.

    `capabilities`: those of the group's nodes. `found`: what schema changes can do to them. `stall_limit`: the seconds
    for which it may block a node's writers. If `body` names no floor, it is the newest schema change, or the previous
    floor with `keep_floor` or after that was lowered, unless a schema change is made `with_change`. `has_nodes`:
    whether there are nodes to which it could go in steps. `at_store`: which nodes can't go back, by what is at the
    store, if it is a rollback with data.

    Raises: ProblemError, when the release can't be made, or differs from the plan that `body` names, or a node can't
    run it, can lose rows or would block its writers, and `body` doesn't allow that.
    """
    _check_way(body)
    _check_data(body)
    group = await to_release(conn, body.group)
    before, old_floor = await _functions(conn, group.release_id), group.schema_floor
    held_below, goes_back = None, False
    if body.rollback:
        body = await _chosen(conn, body, group)
    if body.rollback_to is not None:
        functions, floor, versions, goes_back = await _rollback(conn, body, before)
    else:
        functions, versions = await _changed(conn, body, before)
        floor = group.newest_change if body.schema is None else body.schema
        lowered = old_floor < group.highest_floor and not with_change
        if (keep_floor or lowered) and body.schema is None and group.release_id is not None:
            floor = old_floor
            held_below = group.newest_change if lowered and floor < group.newest_change else None
        if floor > group.newest_change:
            detail = f"the newest schema change is {group.newest_change}, there is no {floor}"
            raise ProblemError("unknown_schema_change", detail, field="schema")
    _check_size(functions, versions)
    granted = _manifests(functions, versions)
    _check_routes(granted)
    raises = floor > group.own_floor or (with_change and body.schema is None)
    way = AT_ONCE_AS_EVER if goes_back else _way(body, group, has_nodes=has_nodes, changes_schema=raises)
    # By the group's own floor: most nodes have that, while a rollout brings them a higher one.
    unfit = compatibility.unfit(capabilities, granted, await compatibility.stepped(conn, group.own_floor, floor))
    effects = await change_effects.of_floors(conn, found, group.own_floor, floor)
    changes = await _changes(conn, before, functions, old_floor, floor, versions)
    number = group.next_number
    undone = None
    if body.data and body.rollback_to is not None:
        if not goes_back:
            text = f"release {body.rollback_to} wasn't the group's, so there is no state of nodes' data that it left"
            raise ProblemError("release_not_possible", text, field="data")
        undone = await undo.read(conn, group.id, body.rollback_to, at_store or {})
    digest = _digest(body.group, number, functions, floor, changes, unfit, effects, way, undone)
    what = f"this release of group {body.group}"
    refusals = [] if body.allow_unfit else compatibility.refusals(unfit, body.group)
    refusals += change_effects.refusals(effects, what, stall_limit, body.allow_loss, body.allow_stall)
    if not plan:
        change_effects.refuse_other_plan(body.plan_digest, digest, what)
        if refusals:
            raise refusals[0]
    release_id = uuid4()
    if plan:
        generation = await conn.fetchval(NEXT_GENERATION)
    else:
        # Before the generation is taken, so that waiting for a locked group delays no other decision.
        await lock(conn, group.id)
        if undone is not None:
            await undo.order(conn, changed, now, by, release_id, undone)
        if way.policy is None and group.open_number is not None:
            await _end_open(conn, changed, now, group, body)
        row = release_id, group.id, number, floor, body.rollback_to, body.reason, by, now, tracing.current()
        names, items = list(functions), functions.values()
        columns = names, [str(version) for version, _ in items], [sha256 for _, sha256 in items]
        generation = await conn.fetchval(MAKE if way.policy is None else ADD, *row, *columns)
        if way.policy is not None:
            rehearse, only = way.policy.rehearse, way.rehearsal_only
            await acts.begin(
                conn, changed, now, release_id, group.id, way.policy, rehearse=rehearse, rehearsal_only=only
            )
        changed.groups.add(str(group.id))
    made = release_bodies.MadeRelease(
        id=None if plan else str(release_id),
        group=body.group,
        number=number,
        generation=generation,
        schema_floor=floor,
        functions=[release_bodies.ReleaseFunction(n, v, sha256) for n, (v, sha256) in sorted(functions.items())],
        rollback_to=body.rollback_to,
        reason=body.reason,
        created_by=by,
        created_at=now,
        rollout=way.begun(now),
        floor_before=old_floor,
        held_below=held_below,
        changes=changes,
        unfit=unfit,
        losses=effects.losses,
        stalls=effects.stalls,
        undo=None if undone is None else undo_plan(undone),
        plan_digest=digest,
        refusals=[release_bodies.PlannedRefusal(each.code, each.detail, each.field) for each in refusals],
    )
    return made, way


async def roll_back(
    conn: Connection,
    changed: Changed,
    now: datetime,
    by: str,
    stored: StoredRollout,
    reason: str,
    at_store: undo.AtStore | None = None,
) -> tuple[release_bodies.MadeRelease, Way]:
    """Make the release that brings a rollout's nodes back to what the group's own release has, and end the rollout.

    With `at_store`, nodes' data go back too, but for those nodes.

    Raises: ProblemError rollout_not_possible, when it has ended otherwise than by an abort, or there is nothing to go
    back to.
    """
    name, group = stored.row.group_name, await to_release(conn, stored.row.group_name)
    to = rolls_back_to(stored, group)
    with_data = at_store is not None
    body = release_bodies.NewRelease(name, rollback_to=to, reason=reason, data=with_data)
    made, way = await make(conn, changed, now, by, body, at_store=at_store)
    if not stored.open:
        said = f"release {made.number} goes back to release {to}"
        await acts.end(conn, changed, now, stored, "rolled_back", said)
    return made, way


def rolls_back_to(stored: StoredRollout, group: GroupToRelease) -> int:
    """Return the number of the release to which a rollout is rolled back.

    Raises: ProblemError rollout_not_possible, when it has ended otherwise than by an abort, or there is nothing to go
    back to.
    """
    name = stored.row.group_name
    why = ""
    if group.own_number is None:
        why = "the group has no release yet to go back to: "
        if group.open_number is not None:
            why += f"`skerry rollout abort {name}` stops the one that goes out, or make another release"
        else:
            why += f"`skerry rollout retry {name}` begins again, or make another release"
    elif group.open_number not in (None, stored.row.number):
        why = f"that of release {group.open_number} is open: `skerry rollout rollback {name}` rolls that one back"
    elif not stored.open and stored.row.state != "aborted":
        why = f"it is {stored.row.state.replace('_', ' ')}: `skerry rollback {name}` goes back from release "
        why += f"{group.own_number}, which is the group's"
    elif group.own_number > stored.row.number:
        why = f"the group's release is {group.own_number}, which has taken its place"
    if why or group.own_number is None:
        raise ProblemError("rollout_not_possible", f"the rollout of release {stored.name} can't be rolled back: {why}")
    return group.own_number


async def refuse_deleted(conn: Connection, release_id: UUID, name: str) -> None:
    """Check that the versions of a release, of this name, still exist. Raises: ProblemError rollout_not_possible."""
    functions = await _functions(conn, release_id)
    versions = await _versions(conn, {}, {function: version for function, (version, _) in functions.items()}, ANY_SIZE)
    if gone := _deleted(functions, versions):
        raise ProblemError("rollout_not_possible", f"release {name} can't go out again: {gone} was deleted since")


async def _end_open(
    conn: Connection, changed: Changed, now: datetime, group: GroupToRelease, body: release_bodies.NewRelease
) -> None:
    """End the group's open rollout, since a release goes to all nodes at once."""
    if body.rollback_to is not None and body.rollback_to == group.own_number:
        stored = await store.open_of(conn, group.id)
        if stored is not None:
            said = f"release {group.next_number} goes back to release {body.rollback_to}"
            why = f"{body.reason}: {said}" if body.reason else said
            await acts.end(conn, changed, now, stored, "rolled_back", why)
    else:
        await acts.supersede(conn, changed, now, group.id)


def _check_way(body: release_bodies.NewRelease) -> None:
    """Check what a request says about how its release goes out. Raises: ProblemError invalid_body, invalid_policy."""
    if body.now and (body.rollout is not None or body.rehearsal_only):
        raise ProblemError("invalid_body", "a release that goes out now has no rollout and no rehearsal", field="now")
    if body.rollout is not None:
        try:
            rules_of(body.rollout)
        except ProblemError as wrong:
            raise ProblemError(wrong.code, wrong.detail, field=f"rollout.{wrong.field}") from None


def _check_data(body: release_bodies.NewRelease) -> None:
    """Check what a request says about nodes' data. Raises: ProblemError invalid_body."""
    if body.data and not body.rollback and body.rollback_to is None:
        text = "nodes' data go back with a rollback alone: send rollback or rollback_to with it"
        raise ProblemError("invalid_body", text, field="data")
    if body.data and (body.rollout is not None or body.rehearsal_only):
        text = "a rollback with data goes to all nodes at once: it has no rollout and no rehearsal"
        raise ProblemError("invalid_body", text, field="data")


def undo_plan(undone: undo.Undo) -> release_bodies.UndoPlan:
    """Describe what an undo does; rows by table aren't known yet."""
    back = [
        release_bodies.NodeGoingBack(
            id=node.id,
            node=node.name,
            release=first.number,
            position=f"{first.lineage}/{first.transaction_id}",
            at=first.at,
            newest_at=node.newest_at,
            newer=0.0 if node.newest_at is None else max(0.0, (node.newest_at - first.at).total_seconds()),
            tables=None,
            tables_unknown=f"`skerry data restore {node.name} --to before:{first.number} --plan` compares them",
        )
        for node, first in undone.back[:MOST_NAMED]
    ]
    left = [
        release_bodies.NodeLeft(each.node.name, None if each.first is None else each.first.number, each.code, each.why)
        for each in undone.left[:MOST_NAMED]
    ]
    return release_bodies.UndoPlan(undone.above, len(undone.back), len(undone.left), back, left)


def _way(body: release_bodies.NewRelease, group: GroupToRelease, *, has_nodes: bool, changes_schema: bool) -> Way:
    """Return how a release goes out that isn't a rollback. Raises: ProblemError rollout_open, release_not_possible."""
    if body.rehearsal_only:
        if group.open_number is not None:
            raise ProblemError(
                "rollout_open",
                f"the rollout of release {group.open_number} of group {body.group} is open: wait until it is done, or "
                "abort it, and rehearse this release then",
                field="rehearsal_only",
            )
        if not has_nodes:
            raise ProblemError(
                "release_not_possible", f"group {body.group} has no node to rehearse it", field="rehearsal_only"
            )
    if not has_nodes:
        return AT_ONCE_AS_EVER
    # What supersedes a rollout brings its changes too, and so does it in steps.
    kept = group.open_policy if group.rolls_out else group.policy
    usual = AT_ONCE if changes_schema else None
    if kept is not None:
        usual = msgspec.convert(kept, Policy)
    policy = None if body.now else body.rollout or usual
    if body.rehearsal_only and policy is None:
        policy = AT_ONCE
    return Way(policy, body.rehearsal_only, usual)


def _digest(
    group: str,
    number: int,
    functions: Functions,
    floor: int,
    changes: release_bodies.Changes,
    unfit: compatibility.Unfit,
    effects: change_effects.ChangeEffects,
    way: Way,
    undone: undo.Undo | None,
) -> str:
    """Return the digest of what a plan of a release shows but the generation, which other groups' releases take too."""
    parts = group, number, sorted(functions.items()), floor, changes, unfit.count, way.policy, way.rehearsal_only
    return change_effects.plan_digest(effects, *parts, *([] if undone is None else undone.parts()))


async def lock(conn: Connection, group_id: UUID) -> None:
    """Lock a group until the end of the transaction."""
    await conn.fetchval(LOCK_GROUP, group_id)


async def _chosen(
    conn: Connection, body: release_bodies.NewRelease, group: GroupToRelease
) -> release_bodies.NewRelease:
    """Return what is asked for, with the number of the release that it goes back to.

    Raises: ProblemError, when there is none to go back to, or `body` names one.
    """
    if body.rollback_to is not None:
        raise ProblemError("invalid_body", "send either rollback or rollback_to", field="rollback")
    number = await rollback_target(conn, group)
    if number is None and group.own_number is None and group.open_number is not None:
        raise ProblemError(
            "release_not_possible",
            f"group {body.group} has no release yet to go back to: `skerry rollout abort {body.group}` stops release "
            f"{group.open_number}, which goes out, or make another release",
            field="rollback",
        )
    if number is None:
        raise ProblemError(
            "release_not_possible",
            f"group {body.group} has no earlier release that a node has run and on which none has failed: choose one "
            f"(`skerry release list --group {body.group}`, `skerry release create --rollback-to N`)",
            field="rollback",
        )
    return msgspec.structs.replace(body, rollback_to=number)


async def rollback_target(conn: Connection, group: GroupRow | GroupToRelease) -> int | None:
    """Return the number of the release that a rollback of a group goes to, or None.

    While a rollout brings its release to nodes, it is the group's own. Otherwise it is the newest before the group's
    own that some node has run and on which none has failed. If the group's own is a rollback, it is the newest before
    the release that this went back to: a second rollback goes further back, and not forward to what the first one left.
    """
    if isinstance(group, GroupToRelease) and group.rolls_out:
        return group.own_number
    if group.release_id is None:
        return None
    number = await conn.fetchval(NUMBER, group.release_id)
    while (earlier := await conn.fetchval(WENT_BACK, group.id, number)) is not None:
        number = earlier
    return await conn.fetchval(ROLLBACK_TARGET, group.id, number)


async def _rollback(
    conn: Connection, body: release_bodies.NewRelease, before: Functions
) -> tuple[Functions, int, Versions, bool]:
    """Return the functions, floor and versions of an earlier release, and whether its return goes to all nodes at once.

    It does where it once was its group's: one whose rollout was stopped goes out as any other.
    """
    if body.functions or body.remove or body.schema is not None:
        raise ProblemError(
            "invalid_body",
            "a rollback takes the functions and the floor of the old release: send none with it",
            field="rollback_to",
        )
    row = await conn.fetchrow(RELEASE, body.group, body.rollback_to)
    if row is None:
        raise ProblemError(
            "unknown_release", f"group {body.group} has no release {body.rollback_to}", field="rollback_to"
        )
    functions = await _functions(conn, row.id)
    versions = await _versions(conn, before, {name: version for name, (version, _) in functions.items()})
    if gone := _deleted(functions, versions):
        raise ProblemError(
            "release_not_possible",
            f"release {body.rollback_to} can't come back: {gone} was deleted since",
            field="rollback_to",
        )
    at_once = row.state in (None, "done") and body.rollout is None and not body.rehearsal_only
    return functions, row.schema_floor, versions, at_once


def _deleted(functions: Functions, versions: Versions) -> str:
    """Return the names of the versions that don't exist any more; '' if all do."""
    gone = [f"{name}@{version}" for name, (version, _) in functions.items() if (name, version) not in versions]
    return ", ".join(sorted(gone))


async def _changed(conn: Connection, body: release_bodies.NewRelease, before: Functions) -> tuple[Functions, Versions]:
    for name in body.remove:
        if name in body.functions:
            raise ProblemError(
                "invalid_body", f"{name} is in functions and in remove: it can be in one of them only", field="remove"
            )
        if name not in before:
            raise ProblemError(
                "unknown_function", f"the newest release of {body.group} has no function {name}", field="remove"
            )
    kept = {name: item for name, item in before.items() if name not in {*body.remove, *body.functions}}
    wanted = {name: version for name, (version, _) in kept.items()} | body.functions
    versions = await _versions(conn, before, wanted)
    for name, version in body.functions.items():
        if (name, version) not in versions:
            raise ProblemError("unknown_version", f"there is no version {version} of {name}", field=f"functions.{name}")
    chosen = {name: (version, versions[name, version].sha256) for name, version in body.functions.items()}
    return kept | chosen, versions


async def _versions(conn: Connection, before: Functions, after: dict[str, int], most: int = MANIFEST_BYTES) -> Versions:
    """Return the versions of a release, and those that they replace, as far as they exist; without manifests if the
    release's have more than `most` bytes together."""
    replaced = [(name, item[0]) for name, item in before.items() if name in after and after[name] != item[0]]
    names, numbers = zip(*after.items(), *replaced, strict=True) if after else ((), ())
    counted = ["true"] * len(after) + ["false"] * len(replaced)
    rows = await conn.fetch(VERSIONS, names, [str(number) for number in numbers], counted, most)
    return {(row.name, row.version): row for row in rows}


async def _functions(conn: Connection, release_id: UUID | None) -> Functions:
    """Return a release's functions; none for None."""
    rows = [] if release_id is None else await conn.fetch(FUNCTIONS, [str(release_id)])
    return {row.name: (row.version, row.sha256) for row in rows}


def _manifests(functions: Functions, versions: Versions) -> Manifests:
    """Return the manifests of the functions whose versions exist."""
    found = {name: versions.get((name, version)) for name, (version, _) in functions.items()}
    return {name: row.manifest for name, row in found.items() if row is not None and row.manifest is not None}


def _check_size(functions: Functions, versions: Versions) -> None:
    """Check that the release fits into a plan, which is one answer. Raises: ProblemError release_not_possible."""
    if len(functions) > wire.MOST_FUNCTIONS:
        raise ProblemError(
            "release_not_possible",
            f"a release has {wire.MOST_FUNCTIONS} functions at most, and this one would have {len(functions)}; remove "
            "some, or put them into releases of other groups",
            field="functions",
        )
    size = max((row.bytes for row in versions.values()), default=0)
    if size > MANIFEST_BYTES:
        raise ProblemError(
            "release_not_possible",
            f"the manifests of a release's functions have {MANIFEST_BYTES} bytes together at most, and these {size}; "
            "keep large configuration in the functions, or in the database",
            field="functions",
        )


def _check_routes(granted: Manifests) -> None:
    """Check that no two functions have the same route. Raises: ProblemError route_conflict."""
    routes = {
        name: msgspec.convert(manifest["route"], Route)
        for name, manifest in granted.items()
        if manifest.get("route") is not None
    }
    said = manifest_rules.conflict(routes)
    if said:
        raise ProblemError("route_conflict", f"{said}; give one of them another route, or take it out of the release")


async def _changes(
    conn: Connection, before: Functions, after: Functions, old_floor: int, floor: int, versions: Versions
) -> release_bodies.Changes:
    changes = await conn.fetch(CHANGES_BETWEEN, old_floor, floor) if floor > old_floor else []
    touched = sorted(name for name in after if after[name] != before.get(name))
    had, granted = _manifests(before, versions), _manifests(after, versions)
    return release_bodies.Changes(
        add=[release_bodies.VersionOf(n, after[n][0]) for n in sorted(after.keys() - before.keys())],
        change=[
            release_bodies.Replaced(n, before[n][0], after[n][0])
            for n in sorted(after.keys() & before.keys())
            if after[n] != before[n]
        ],
        remove=[release_bodies.VersionOf(n, before[n][0]) for n in sorted(before.keys() - after.keys())],
        schema=changes,
        grants=[
            release_bodies.ChangedGrant(name, grant, old, new)
            for name in touched
            # A version's manifest is deleted with it, so those of former releases may be missing here.
            if name in granted and (name in had or name not in before)
            for grant, (old, new) in manifest_rules.differences(had.get(name, {}), granted[name]).items()
        ],
    )


async def changes_by(conn: Connection, release: ReleaseListRow) -> tuple[release_bodies.Changes, int]:
    """Return how a release differs from the one before it in its group, and that one's floor."""
    earlier = await conn.fetchrow(BEFORE, release.group_name, release.number, release.created_at)
    before = await _functions(conn, None if earlier is None else earlier.id)
    old_floor = 0 if earlier is None else earlier.schema_floor
    after = await _functions(conn, release.id)
    return await _changes_made(conn, before, after, old_floor, release.schema_floor), old_floor


async def changes_to(conn: Connection, before: Functions, version: int, group: str) -> release_bodies.Changes:
    """Return how the release of a group differs from what a node runs: these functions and this schema version."""
    found = await to_release(conn, group)
    return await _changes_made(conn, before, await _functions(conn, found.own_id), version, found.own_floor)


async def _changes_made(
    conn: Connection, before: Functions, after: Functions, old_floor: int, floor: int
) -> release_bodies.Changes:
    """Return how a release that was made differs from these functions and this floor."""
    versions = await _versions(conn, before, {name: version for name, (version, _) in after.items()}, ANY_SIZE)
    return await _changes(conn, before, after, old_floor, floor, versions)


async def to_release(conn: Connection, name: str) -> GroupToRelease:
    """Read what a release of a group goes by.

    Raises: ProblemError unknown_group, when there is no group of this name.
    """
    row = await conn.fetchrow(TO_RELEASE, name)
    if row is None:
        raise unknown_group(name)
    return row
