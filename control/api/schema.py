"""Schema changes: numbered without gaps, tried before they are accepted, amended by revisions (R 3.1, 3.2)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct, field
from msgspec.structs import asdict

from control.api import pagination, release_bodies, release_making, releases
from control.api.operations import ApiCall, Reply, operation
from control.api.request_input import SQL_BODY
from control.edge_check import CheckedChange
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.wire import Body, Number, Sha256
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import applied_revisions, change_effects, probed_functions
from control.sync.applied_revisions import NodesOfRevision
from control.sync.change_effects import ChangeEffects


class NewSchemaChange(Body, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    sql: Annotated[str, Meta(min_length=1, max_length=1024 * 1024)]
    number: Number | None = None
    """If given, the change is refused unless this is its number (a guard against two registrations at once)."""
    release: release_bodies.FollowingRelease | None = None
    """The release with the change, for a group; None: no node gets it yet."""


class AmendSchemaChange(Body, frozen=True):
    sql: Annotated[str, Meta(min_length=1, max_length=1024 * 1024)]
    allow_loss: bool = False
    """Amend it even if nodes get the text without another release and can lose rows."""
    allow_stall: bool = False
    """Amend it even if it would block such nodes' writers for longer than the setting `stall_limit`."""
    plan_digest: Sha256 | None = None
    """The digest of a plan that was shown: if the amendment would do something else, it is refused."""
    release: release_bodies.FollowingRelease | None = None
    """A release of a group, whose nodes get the new text with it; None: nodes get it when they try again."""


class SchemaChange(Struct):
    """The newest revision of a schema change (R 3.1, 3.2)."""

    number: int
    revision: int
    name: str
    sql: str
    checksum: wire.Sha256
    created_by: str
    created_at: datetime
    planned_at: datetime | None
    """When a plan first contained this revision, so that nodes may have applied it; null: never."""
    withdrawn: bool
    """It does nothing: the previous revision was withdrawn."""
    losses: list[dict[str, str]] | None
    """What nodes can lose because of it: `statement`, `table` and `message` of each; null: not checked."""
    stalls: list[dict[str, Any]] | None
    """What blocks writers on large tables: `statement`, `table`, `message` and `us` (microseconds per row) of each;
    null: not checked."""


class ListedSchemaChange(SchemaChange):
    nodes: list[NodesOfRevision]
    """How many nodes have applied each revision, by their last reports; the oldest revision first."""


class CheckWarning(Struct):
    statement: str
    message: str


class MadeSchemaChange(SchemaChange):
    warnings: list[CheckWarning]
    """What may fail on a node: statements, depending on its rows, and afterwards views and triggers."""


class Unreversed(Struct):
    """A statement that can't be reversed."""

    statement: str
    message: str
    """Why."""


class ReversalDraft(Struct):
    """A draft of the schema change that reverses another one; nothing is registered."""

    number: int
    name: str
    """A suggested name for the draft."""
    sql: str
    """Empty if nothing can be reversed."""
    kept: list[Unreversed]


class SchemaChangeHistory(ListedSchemaChange):
    revisions: list[SchemaChange] = field(default_factory=list)
    """The newest ten revisions, oldest first."""


class RegisteredSchemaChange(MadeSchemaChange, omit_defaults=True):
    release: release_bodies.MadeRelease | None = None
    """The release that was requested with it; missing if none was."""


class SchemaChangePlan(ChangeEffects):
    """What a new schema change or an amendment would be, and its effects on nodes whose release already has it."""

    change: MadeSchemaChange
    release: release_bodies.MadeRelease | None
    """The release for the requested group; null if none was requested."""
    plan_digest: wire.Sha256
    """What an amendment can send as its `plan_digest`, so that exactly this is done, or nothing."""


class RolledOut(NamedTuple):
    """A release whose rollout is open."""

    group_name: str
    number: int


class NewestRevision(NamedTuple):
    """The number of a schema change and of its newest revision."""

    number: int
    revision: int


SQL = queries.load("schema")
CHANGES = SQL.rows("changes", SchemaChange)
REVISIONS = SQL.rows("revisions", SchemaChange)
LOCK = SQL.rows("lock", SchemaChange)
NEXT = SQL.optional("next", int)
SYNCED = SQL.value("synced", bool)
ROLLED_OUT = SQL.rows("rolled_out", RolledOut)
NUMBERS = SQL.rows("numbers", NewestRevision)
ADD = SQL.rows("add", SchemaChange)

NOTHING_FOUND = CheckedChange([], [], [])
ATTEMPTS = 5
"""How many times a change is checked if each time another one is registered meanwhile."""
WITHDRAWN = "-- Withdrawn before any node had it: this change does nothing.\nSELECT 1;\n"
"""The text of a withdrawn change. It has a statement, because nodes refuse a change without one."""
SHOWN = 10
"""How many of a change's newest revisions are shown."""


@operation(
    "POST",
    "/v1/schema-changes",
    "Register a schema change",
    role="deploy",
    answers={200: SchemaChangePlan, 201: RegisteredSchemaChange},
    errors=("schema_conflict", "schema_refused", "check_unavailable", *releases.FOLLOWING_ERRORS),
    body_limit=SQL_BODY,
)
async def add(call: ApiCall, body: NewSchemaChange, query: releases.PlanFor) -> Reply:
    if kept := await call.replayed():
        return kept
    for _ in range(ATTEMPTS):
        history = await call.services.db.read(_history)
        number = len(history) + 1
        if number > wire.MOST_CHANGES:
            raise ProblemError(
                "schema_refused",
                f"there are {wire.MOST_CHANGES} schema changes already, and no node can report more: put what is still "
                "to be changed into a new control plane",
            )
        if body.number is not None and body.number != number:
            raise ProblemError(
                "schema_conflict", f"the next number is {number}; look at what was registered meanwhile", field="number"
            )
        checked = await _check(call, _texts(history), body.sql)
        answer = await _insert(
            call, body.release, query, history, number, 1, body.name, body.sql, checked, ChangeEffects([], [])
        )
        if answer is not None:
            return answer
    raise _moving()


@operation(
    "POST",
    "/v1/schema-changes/{number}/revisions",
    "Amend a schema change",
    role="deploy",
    answers={200: SchemaChangePlan, 201: RegisteredSchemaChange},
    errors=("schema_conflict", "schema_refused", "plan_changed", "check_unavailable", *releases.FOLLOWING_ERRORS),
    body_limit=SQL_BODY,
)
async def amend(call: ApiCall, body: AmendSchemaChange, query: releases.PlanFor) -> Reply:
    """Register another text of a change that leads to the same schema.

    Nodes that lack the change get the newest revision; the others keep what they applied.
    """
    number = call.path["number"]
    if kept := await call.replayed():
        return kept
    for _ in range(ATTEMPTS):
        history = await call.services.db.read(_history)
        if number > len(history):
            raise _unknown(number)
        old = history[number - 1]
        if old.withdrawn:
            raise ProblemError("schema_conflict", f"change {number} is withdrawn: register a new one", field="number")
        if body.sql == old.sql:
            raise ProblemError(
                "schema_conflict", f"revision {old.revision} of change {number} has this very text", field="sql"
            )
        checked = await _check(call, _texts(history), body.sql, (number, old.sql))
        effects = await call.services.db.read(lambda conn: change_effects.of_amendment(conn, number, checked))  # noqa: B023
        if not query.plan:
            what, limit = f"this amendment of schema change {number}", call.services.settings.stall_limit
            change_effects.refuse_other_plan(
                body.plan_digest, _digest(number, old.revision + 1, body.sql, effects), what
            )
            change_effects.refuse(effects, what, limit, allow_loss=body.allow_loss, allow_stall=body.allow_stall)
        answer = await _insert(
            call, body.release, query, history, number, old.revision + 1, old.name, body.sql, checked, effects
        )
        if answer is not None:
            return answer
    raise _moving()


@operation(
    "POST",
    "/v1/schema-changes/{number}/withdraw",
    "Withdraw the last schema change, if no plan has contained it",
    role="deploy",
    answers={201: SchemaChange},
    errors=("unknown_schema_change", "schema_conflict", "schema_planned"),
)
async def withdraw(call: ApiCall) -> Reply:
    """Withdraw a change: its number stays, as a revision that does nothing.

    This works only for the last change that isn't withdrawn, and only if no node can have it. A release whose floor
    includes it stays unchanged: its nodes get the new revision.
    """
    number = call.path["number"]
    by_others = await call.services.db.read(lambda conn: conn.fetchval(SYNCED, number))

    async def work(conn: Connection, _changed: Changed) -> SchemaChange:
        # Locked, so that either this or a plan with the change comes first, and the other one sees it.
        revisions = await conn.fetch(LOCK, number)
        if not revisions:
            raise _unknown(number)
        newest = revisions[0]
        if newest.withdrawn:
            raise ProblemError("schema_conflict", f"change {number} is withdrawn already", field="number")
        if (later := await conn.fetchval(NEXT, number)) is not None:
            raise ProblemError(
                "schema_conflict",
                f"change {later} comes after change {number} and may need it: withdraw that first",
                field="number",
            )
        if (rollout := await conn.fetchrow(ROLLED_OUT, number)) is not None:
            name = f"{rollout.group_name}/{rollout.number}"
            raise ProblemError(
                "schema_planned",
                f"change {number} is in release {name}, whose rollout is open: nodes rehearse it, or get it. Abort "
                f"the rollout first (`skerry rollout abort {name}`)",
                field="number",
            )
        planned = [row.planned_at for row in revisions if row.planned_at is not None]
        if planned or by_others:
            since = f" since {min(planned):%Y-%m-%d %H:%M:%S} UTC" if planned else ""
            raise ProblemError(
                "schema_planned",
                f"change {number} is in plans{since}, so nodes may have it: register a change that reverses it "
                f"(GET /v1/schema-changes/{number}/reversal drafts one)",
                field="number",
            )
        row = await _register(
            call, conn, number, newest.revision + 1, newest.name, WITHDRAWN, NOTHING_FOUND, withdrawn=True
        )
        before = {"revision": newest.revision, "checksum": newest.checksum}
        await call.audit(
            conn, "schema.withdraw", str(number), {"name": row.name}, before=before, after={"revision": row.revision}
        )
        return row

    return await call.write(work)


@operation(
    "GET",
    "/v1/schema-changes/{number}/reversal",
    "Draft the schema change that reverses one",
    role="read",
    everywhere=False,
    answers={200: ReversalDraft},
    errors=("unknown_schema_change", "schema_refused", "check_unavailable"),
)
async def draft_reversal(call: ApiCall) -> Reply:
    """Draft SQL to look at, and perhaps to register; nothing is written."""
    number = call.path["number"]
    history = await call.services.db.read(_history)
    if number > len(history):
        raise _unknown(number)
    sql, kept = await call.services.checks.of(call.operator.id).reversal(_texts(history), number)
    name = f"reverses {number} {history[number - 1].name}"[:200]
    return Reply(200, ReversalDraft(number, name, sql, [Unreversed(**item) for item in kept]))


@operation(
    "GET",
    "/v1/schema-changes",
    "Schema changes, each in its newest revision",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[ListedSchemaChange]},
)
async def list_changes(call: ApiCall, query: pagination.Paging) -> Reply:
    """List the newest revision of each change, by number."""
    after = pagination.read_cursor(query.cursor, (int,)) or (0,)

    async def work(conn: Connection) -> pagination.Page[ListedSchemaChange]:
        counts = await applied_revisions.counts(conn)

        async def describe(
            rows: Sequence[SchemaChange],
        ) -> list[ListedSchemaChange]:
            return [ListedSchemaChange(**asdict(row), nodes=await counts.of(row.number)) for row in rows]

        return await pagination.fill(
            lambda after, count: conn.fetch(CHANGES, *after, count),
            describe,
            lambda row: (row.number,),
            after,
            query.limit,
            first=1,
            most=8,
        )

    return await call.read(work)


async def count_changes(call: ApiCall) -> Reply:
    """Return the number of the newest change, which is how many there are."""
    return await call.read(lambda conn: conn.fetchval(release_making.NEWEST_CHANGE))


@operation(
    "GET",
    "/v1/schema-changes/{number}",
    "A schema change and its revisions",
    role="read",
    everywhere=False,
    answers={200: SchemaChangeHistory},
    errors=("unknown_schema_change",),
)
async def get_change(call: ApiCall) -> Reply:
    number = call.path["number"]

    async def work(conn: Connection) -> SchemaChangeHistory:
        rows = (await conn.fetch(REVISIONS, number, SHOWN))[::-1]
        if not rows:
            raise _unknown(number)
        nodes = await (await applied_revisions.counts(conn)).of(number)
        return SchemaChangeHistory(**asdict(rows[-1]), nodes=nodes, revisions=rows)

    return await call.read(work)


async def _history(conn: Connection) -> list[SchemaChange]:
    """Return the newest revision of every change, by number."""
    return await conn.fetch(CHANGES, 0, 2**31)


async def _check(
    call: ApiCall, earlier: list[tuple[int, str]], sql: str, amends: tuple[int, str] | None = None
) -> CheckedChange:
    """Try the change, and the functions of releases after it. Raises: ProblemError schema_refused."""
    services = call.services
    checks = services.checks.of(call.operator.id)
    checked = await checks.schema(earlier, sql, amends)
    probes = await probed_functions.check(services.db, services.store, checks, earlier, sql, amends)
    return checked._replace(warnings=checked.warnings + probes)


def _texts(history: list[SchemaChange]) -> list[tuple[int, str]]:
    return [(row.number, row.sql) for row in history]


async def _insert(
    call: ApiCall,
    following: release_bodies.FollowingRelease | None,
    query: releases.PlanFor,
    history: list[SchemaChange],
    number: int,
    revision: int,
    name: str,
    sql: str,
    checked: CheckedChange,
    effects: ChangeEffects,
) -> Reply | None:
    """Register a change that was checked after `history`; return None if the history has changed since.

    `effects`: on nodes that get it without another release.
    """
    tried = [(row.number, row.revision) for row in history]
    wanted = await releases.following(call, following, query, number, checked)

    async def register(conn: Connection) -> MadeSchemaChange:
        if [tuple(row) for row in await conn.fetch(NUMBERS)] != tried:
            raise _Moved
        row = await _register(call, conn, number, revision, name, sql, checked)
        action = "schema.add" if revision == 1 else "schema.amend"
        before = (
            {} if revision == 1 else {"name": name, "revision": revision - 1, "checksum": history[number - 1].checksum}
        )
        after = {"name": name, "revision": revision, "checksum": row.checksum}
        await call.audit(conn, action, str(number), before=before, after=after)
        return MadeSchemaChange(**asdict(row), warnings=[CheckWarning(**w) for w in checked.warnings])

    async def plan(conn: Connection, changed: Changed) -> SchemaChangePlan:
        made = await register(conn)
        release = await releases.make_following(call, conn, changed, wanted)
        digest = _digest(number, revision, sql, effects)
        return SchemaChangePlan(effects.losses, effects.stalls, made, release, digest)

    async def work(conn: Connection, changed: Changed) -> RegisteredSchemaChange:
        made = await register(conn)
        release = await releases.make_following(call, conn, changed, wanted)
        return RegisteredSchemaChange(**asdict(made), release=release)

    try:
        return await (call.dry_run(plan) if query.plan else call.write(work))
    except _Moved:
        return None


def _digest(number: int, revision: int, sql: str, effects: ChangeEffects) -> str:
    """Return the digest of what the plan of a schema change shows."""
    return change_effects.plan_digest(effects, number, revision, wire.schema_checksum(sql))


async def _register(
    call: ApiCall,
    conn: Connection,
    number: int,
    revision: int,
    name: str,
    sql: str,
    found: CheckedChange,
    *,
    withdrawn: bool = False,
) -> SchemaChange:
    by, now = call.operator.name, call.services.clock.now()
    checksum = wire.schema_checksum(sql)
    row = number, revision, name, sql, checksum, by, now, withdrawn, found.losses, found.stalls
    return await conn.one(ADD, *row)


class _Moved(Exception):
    """Another change was registered between the check and the write."""


def _moving() -> ProblemError:
    return ProblemError(
        "database_busy", f"other schema changes came first {ATTEMPTS} times; nothing was changed, try again"
    )


def _unknown(number: int) -> ProblemError:
    return ProblemError("unknown_schema_change", f"there is no schema change {number}", field="number")
