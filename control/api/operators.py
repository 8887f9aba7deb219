"""Operators: who may use the API, each with a token, rights and an end; and how people sign in as them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from msgspec import Meta, Struct

from control import tokens
from control.access import join_tokens, rights
from control.access.auth import Principal
from control.access.rights import Grant, Rights, Role
from control.access.sign_ins import INTERVAL
from control.api import pagination
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol.wire import MOST_FUNCTIONS, Body, Name
from control.storage import access_changes, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection

LEGIBLE = r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]*$(?!\n)"
"""A stranger's line of text: no control or invisible characters, and none that change the direction."""


class GivenGrant(Body, frozen=True):
    role: Role
    group: Name | None = None
    """None: for all groups."""
    functions: Annotated[list[Name], Meta(min_length=1, max_length=MOST_FUNCTIONS)] | None = None
    """Only with the role `push`: the functions that it covers; None: all."""


Grants = Annotated[list[GivenGrant], Meta(min_length=1, max_length=100)]
ExpiresIn = Annotated[int, Meta(ge=60, le=3650 * 86400)]
"""Seconds."""


class NewOperator(Body, frozen=True):
    name: Name
    role: Role | None = None
    """Instead of `grants`: the role for all groups and functions."""
    grants: Grants | None = None
    expires_in: ExpiresIn | None = None
    """None: the token doesn't expire."""


class ChangeOperator(Body, frozen=True):
    """Omitted fields stay unchanged."""

    grants: Grants | None = None
    expires_in: ExpiresIn | None = None
    endless: bool = False
    """The token no longer expires."""


class RotateOperator(Body, frozen=True):
    keep_old: Annotated[int, Meta(ge=0, le=30 * 86400)] = 0
    """Seconds for which the old token, and sessions that began before, stay valid."""


class NewLogin(Body, frozen=True):
    machine: Annotated[str, Meta(min_length=1, max_length=100, pattern=LEGIBLE)]
    """The name of the machine that it is for, shown to whoever allows it."""


class WaitingToken(Body, frozen=True):
    device_code: Annotated[str, Meta(min_length=1, max_length=200)]


class HeldGrant(Struct):
    role: str
    group: str | None
    """Null: for all groups."""
    functions: list[str] | None
    """The functions that the role `push` covers; null: all."""


class ProvidersPerson(Struct):
    """A person whom an OpenID provider knows."""

    issuer: str
    subject: str
    name: str
    """Their name at the provider when they last signed in."""


class Operator(Struct):
    id: str
    """Distinguishes it from revoked operators that had the same name."""
    name: str
    grants: list[HeldGrant]
    expires_at: datetime | None
    """When the token expires; null: never. For somebody who signs in by a provider: when the last session ends."""
    created_at: datetime
    last_used_at: datetime | None
    """When it last sent a request, by its token or in a session, to within two minutes; null: never."""
    old_token_ends_at: datetime | None
    """Until when the previous token is valid; null: it has expired, or there was none."""
    person: ProvidersPerson | None = None
    """Who it is, if it signs in by a provider; null: it has a token."""


class MadeOperator(Struct):
    id: str
    name: str
    grants: list[HeldGrant]
    expires_at: datetime | None
    token: str
    """The token's text, which is returned only once."""


class Asking(Struct):
    """The caller, and what it may do."""

    operator: str
    id: str
    grants: list[HeldGrant]
    by_session: bool
    """Whether it has signed in; otherwise it uses its token."""
    ends_at: datetime | None
    """When the session or the token expires; null: never."""


class SignInCode(Struct):
    code: str
    """To be typed at `/sign-in`; valid once."""
    expires_at: datetime


class BegunLogin(Struct):
    """As in RFC 8628, but times are RFC 3339."""

    device_code: str
    """The secret for asking whether the login was allowed."""
    user_code: str
    """To be typed at `verification_path` by somebody who is signed in."""
    verification_path: str
    expires_at: datetime
    interval: int
    """Seconds between two requests."""


class TakenLogin(Struct):
    token: str
    """A token of the operator who allowed it, which is returned only once."""
    operator: str
    expires_at: datetime
    """When it expires at the latest."""


class OperatorRow(NamedTuple):
    """An operator that isn't revoked, and when it last sent a request."""

    id: UUID
    name: str
    role: str
    grants: list[dict[str, Any]] | None
    expires_at: datetime | None
    created_at: datetime
    issuer: str | None
    subject: str | None
    shown_name: str
    old_ends_at: datetime | None
    last_used_at: datetime | None


SQL = queries.load("operators")
TAKEN = SQL.value("taken", bool)
OPERATORS = SQL.rows("operators", OperatorRow)
FREE_NAME = SQL.value("free_name", str)
OPERATOR = SQL.rows("operator", OperatorRow)
ADMINS = SQL.value("admins", int)
GROUPS = SQL.value("groups", str)


@operation(
    "POST",
    "/v1/operators",
    "Make an operator",
    role="admin",
    everywhere=False,
    answers={201: MadeOperator},
    errors=("name_taken", "unknown_group"),
)
async def create(call: ApiCall, body: NewOperator) -> Reply:
    """Make an operator. Only its token's hash is stored, so the same request again gets a new token."""
    if (body.role is None) == (body.grants is None):
        raise ProblemError("invalid_body", "send either role, for all groups, or grants", field="grants")
    given = Rights((Grant(body.role),)) if body.role is not None else _given(body.grants or [])
    now = call.services.clock.now()
    expires_at = None if body.expires_in is None else now + timedelta(seconds=body.expires_in)
    _refuse_giving(call.operator, given, expires_at)

    async def work(conn: Connection, changed: Changed) -> MadeOperator:
        await _check_groups(conn, given)
        if await conn.fetchval(TAKEN, body.name):
            raise ProblemError(
                "name_taken",
                f"there is an operator {body.name}: choose another name, or revoke it first",
                field="name",
            )
        # A revoked operator may have had this name: in the audit log the ids distinguish the two.
        changed.operators.update(await conn.column(FREE_NAME, body.name))
        await conn.execute(SQL["forget_answers"], body.name)
        token = tokens.new_token("operator")
        column, role = rights.to_rows(given), rights.old_role(given)
        # Not announced: a replica looks up an operator that isn't in its cache.
        await conn.execute(SQL["add"], token.id, body.name, role, column, expires_at, token.secret_hash, now)
        told = {"name": body.name, "role": role, "grants": column, "expires_at": expires_at, "hash": token.secret_hash}
        # After the end of the previous operator of this name, which may be later than the request's arrival.
        await access_changes.record(conn, call.services.clock.now(), "operator-made", token.id, told)
        after: dict[str, Any] = {"grants": _said(given)}
        if expires_at is not None:
            after["expires_at"] = expires_at
        await call.audit(conn, "operator.create", body.name, {"id": str(token.id)}, after=after)
        return MadeOperator(str(token.id), body.name, _shown(given), expires_at, token.text)

    async def renew(conn: Connection, changed: Changed, kept: dict[str, Any]) -> MadeOperator:
        return await _renew(conn, call, changed, kept)

    return await call.write(work, renew=renew)


@operation(
    "GET",
    "/v1/operators",
    "Operators",
    role="admin",
    everywhere=False,
    answers={200: pagination.Page[Operator]},
)
async def list_operators(call: ApiCall, query: pagination.Paging) -> Reply:
    """List the operators that weren't revoked and that whoever asks may change."""
    groups = call.operator.rights.groups("admin")
    begin = pagination.read_cursor(query.cursor, (str,)) or ("",)

    async def work(conn: Connection) -> pagination.Page[Operator]:
        return await pagination.fill(
            lambda after, count: conn.fetch(OPERATORS, *after, groups, count),
            pagination.each(lambda row: _operator(row, call.services.clock.now())),
            lambda row: (row.name,),
            begin,
            query.limit,
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/operators/{name}",
    "An operator",
    role="admin",
    everywhere=False,
    answers={200: Operator},
    errors=("unknown_operator",),
)
async def get(call: ApiCall) -> Reply:

    async def work(conn: Connection) -> Operator:
        row = await _find(conn, call.operator, call.path["name"])
        return _operator(row, call.services.clock.now())

    return await call.read(work)


@operation(
    "POST",
    "/v1/operators/{name}/rotate",
    "Exchange an operator's token for another one",
    role="admin",
    everywhere=False,
    answers={200: MadeOperator},
    errors=("unknown_operator", "operator_of_provider"),
)
async def rotate(call: ApiCall, body: RotateOperator) -> Reply:
    """Make another token. The one before ends now, or after `keep_old`; so do sessions."""

    async def work(conn: Connection, changed: Changed) -> MadeOperator:
        row = await _find(conn, call.operator, call.path["name"])
        if row.issuer is not None:
            raise ProblemError(
                "operator_of_provider", f"{row.name} signs in by {row.issuer} and has no token", field="name"
            )
        # An admin whose token expires can't get itself one that expires later.
        _refuse_giving(call.operator, rights.of_row(row.role, row.grants), row.expires_at)
        now = call.services.clock.now()
        token, ends_at = tokens.new_token("operator", row.id), now + timedelta(seconds=body.keep_old)
        await conn.execute(SQL["end_older_sessions"], row.id, now)
        await conn.execute(SQL["end_codes"], row.id)
        await conn.execute(SQL["rotate"], row.id, token.secret_hash, now, ends_at)
        told = {"hash": token.secret_hash, "old_ends_at": ends_at}
        await access_changes.record(conn, now, "operator-renewed", row.id, told)
        changed.operators.add(str(row.id))
        await call.audit(conn, "operator.rotate", row.name, {"id": str(row.id), "old_token_ends_at": ends_at})
        return _made(row, token)

    async def renew(conn: Connection, changed: Changed, kept: dict[str, Any]) -> MadeOperator:
        return await _renew(conn, call, changed, kept)

    return await call.write(work, status=200, renew=renew)


@operation(
    "POST",
    "/v1/operators/{name}/change",
    "Change what an operator may, and until when",
    role="admin",
    everywhere=False,
    answers={200: Operator},
    errors=("unknown_operator", "unknown_group", "last_admin", "operator_of_provider"),
)
async def change(call: ApiCall, body: ChangeOperator) -> Reply:
    """Change what the operator may do, and until when; its token stays."""
    given = None if body.grants is None else _given(body.grants)
    if body.endless and body.expires_in is not None:
        raise ProblemError("invalid_body", "send either expires_in or endless", field="endless")

    async def work(conn: Connection, changed: Changed) -> Operator:
        now = call.services.clock.now()
        row = await _find(conn, call.operator, call.path["name"])
        if row.issuer is not None:
            raise ProblemError(
                "operator_of_provider",
                f"{row.name} signs in by {row.issuer}, and has the rights of its groups there from each sign-in on: "
                "change these, or the file SKERRY_OIDC_GRANTS, or revoke it for good",
                field="name",
            )
        before = rights.of_row(row.role, row.grants)
        after = before if given is None else given
        expires_at = None if body.endless else row.expires_at
        if body.expires_in is not None:
            expires_at = now + timedelta(seconds=body.expires_in)
        _refuse_giving(call.operator, after, expires_at)
        await _check_groups(conn, after)
        if not _stays(after, expires_at):
            await _keep_an_admin(conn, row)
        column = rights.to_rows(after)
        await conn.execute(SQL["change"], row.id, rights.old_role(after), column, expires_at)
        told = {"role": rights.old_role(after), "grants": column, "expires_at": expires_at}
        await access_changes.record(conn, now, "operator-changed", row.id, told)
        if after != before or _earlier(expires_at, row.expires_at):
            # Join tokens that it couldn't make any more, or that would outlive it.
            await join_tokens.end_of_operator(conn, row.name, now)
        changed.operators.add(str(row.id))
        was = {"grants": _said(before), "expires_at": row.expires_at}
        becomes = {"grants": _said(after), "expires_at": expires_at}
        await call.audit(conn, "operator.change", row.name, {"id": str(row.id)}, before=was, after=becomes)
        return _operator(row._replace(grants=column, expires_at=expires_at), now)

    return await call.write(work, status=200)


@operation(
    "DELETE",
    "/v1/operators/{name}",
    "Revoke an operator",
    role="admin",
    everywhere=False,
    answers={204: None},
    errors=("unknown_operator", "last_admin"),
)
async def revoke(call: ApiCall) -> Reply:

    async def work(conn: Connection, changed: Changed) -> None:
        row = await _find(conn, call.operator, call.path["name"])
        await _keep_an_admin(conn, row)
        now = call.services.clock.now()
        await conn.execute(SQL["revoke"], row.id, now)
        told = {"name": row.name, "issuer": row.issuer, "subject": row.subject}
        await access_changes.record(conn, now, "operator-revoked", row.id, told)
        await join_tokens.end_of_operator(conn, row.name, now)
        changed.operators.add(str(row.id))
        held = rights.of_row(row.role, row.grants)
        await call.audit(conn, "operator.revoke", row.name, {"id": str(row.id)}, before={"grants": _said(held)})

    return await call.write(work, status=204)


# Requests of `skerry console`, `skerry login` and `skerry logout`


@operation(
    "POST",
    "/v1/sign-in-codes",
    "Make a code for signing in at the console",
    role="read",
    everywhere=False,
    answers={201: SignInCode},
    errors=("too_many_tries",),
)
async def make_code(call: ApiCall) -> Reply:
    """Make a code. Only its hash is stored, and it isn't kept under an idempotency key."""
    code, ends_at = await call.services.sign_ins.make_code(call.scope, call.operator)
    return Reply(201, SignInCode(code, ends_at))


@operation(
    "POST",
    "/v1/logins",
    "Begin a login of a command line",
    role=None,
    answers={201: BegunLogin},
    errors=("too_many_tries",),
)
async def begin_login(call: ApiCall, body: NewLogin) -> Reply:
    """Begin a login for anybody: the device authorization request of RFC 8628."""
    begun = await call.services.sign_ins.begin_login(call.scope, body.machine)
    made = BegunLogin(begun.secret, begun.code, "/login", begun.ends_at, INTERVAL)
    return Reply(201, made)


@operation(
    "POST",
    "/v1/logins/token",
    "Was the login allowed?",
    role=None,
    answers={200: TakenLogin},
    errors=(
        *("login_pending", "login_refused", "login_ended"),
        *("credentials_invalid", "token_expired", "session_ended"),
    ),
)
async def take_login(call: ApiCall, body: WaitingToken) -> Reply:
    """Answer whoever has the secret of the login: the device access token request."""
    token, operator, ends_at = await call.services.sign_ins.take_login(call.scope, body.device_code)
    return Reply(200, TakenLogin(token, operator.name, ends_at))


@operation(
    "GET",
    "/v1/sessions/self",
    "Who asks, and what it may",
    role="read",
    everywhere=False,
    answers={200: Asking},
)
async def who_asks(call: ApiCall) -> Reply:
    by = call.operator
    return Reply(200, Asking(by.name, by.id, _shown(by.rights), bool(by.session_id), by.expires_at))


@operation(
    "DELETE",
    "/v1/sessions/self",
    "End the session in which one asks",
    role="read",
    everywhere=False,
    answers={204: None},
    errors=("unknown_session",),
)
async def end_session(call: ApiCall) -> Reply:
    if not call.operator.session_id:
        raise ProblemError("unknown_session", "this is an operator's token, and no session that could be ended")
    await call.services.sessions.end(call.scope, call.operator)
    return Reply(204)


async def _find(conn: Connection, by: Principal, name: str) -> OperatorRow:
    """Find an operator that `by` may see and change, as an admin of all its groups.

    Raises: ProblemError unknown_operator, when there is none, or one that `by` may not change.
    """
    row = await conn.fetchrow(OPERATOR, name)
    if row is None or not by.rights.may_give(rights.of_row(row.role, row.grants).grants):
        raise _unknown(name)
    return row


def _unknown(name: str) -> ProblemError:
    return ProblemError("unknown_operator", f"there is no operator {name}", field="name")


async def _renew(conn: Connection, call: ApiCall, changed: Changed, kept: dict[str, Any]) -> MadeOperator:
    """Make another token in place of one whose answer may have been lost: a request came again.

    Raises: ProblemError unknown_operator, when the operator was revoked since, also where another has its name;
        AuthError, when its token now ends later than that of whoever asks.
    """
    row = await _find(conn, call.operator, kept["name"])
    if str(row.id) != kept["id"]:
        raise _unknown(row.name)
    _refuse_giving(call.operator, rights.of_row(row.role, row.grants), row.expires_at)
    token = tokens.new_token("operator", row.id)
    now, told = call.services.clock.now(), {"hash": token.secret_hash}
    await access_changes.record(conn, now, "operator-renewed", row.id, told)
    await conn.execute(SQL["renew"], token.id, token.secret_hash)
    changed.operators.add(str(token.id))
    await call.audit(conn, "operator.renew", row.name, {"id": str(row.id)})
    return _made(row, token)


def _made(row: OperatorRow, token: tokens.Token) -> MadeOperator:
    held = _shown(rights.of_row(row.role, row.grants))
    return MadeOperator(str(token.id), row.name, held, row.expires_at, token.text)


def _given(grants: Sequence[GivenGrant]) -> Rights:
    """Return the rights in a body.

    Raises: ProblemError invalid_body, when functions come with another role than push.
    """
    for number, grant in enumerate(grants):
        if grant.functions is not None and grant.role != "push":
            raise ProblemError(
                "invalid_body",
                f"the role {grant.role} is for all functions of a group; push alone is given for some of them",
                field=f"grants[{number}].functions",
            )
    return Rights(
        tuple(Grant(g.role, g.group, None if g.functions is None else frozenset(g.functions)) for g in grants)
    )


def _refuse_giving(by: Principal, given: Rights, expires_at: datetime | None) -> None:
    """Check that an operator doesn't give more than it has. Raises: AuthError."""
    for grant in given.grants:
        if not by.rights.may_give([grant]):
            by.refuse(f"the role {Grant('admin', grant.group)}, to give {grant}")
    if by.expires_at is not None and (expires_at is None or expires_at > by.expires_at):
        by.refuse(f"a token that is good for longer, since that of {by.name} ends at {by.expires_at}")


async def _check_groups(conn: Connection, given: Rights) -> None:
    """Check that the groups of all grants exist. Raises: ProblemError unknown_group."""
    wanted = {g.group for g in given.grants if g.group is not None}
    missing = wanted - set(await conn.column(GROUPS, sorted(wanted)))
    if missing:
        raise ProblemError("unknown_group", f"there is no group {', '.join(sorted(missing))}", field="grants")


async def _keep_an_admin(conn: Connection, row: OperatorRow) -> None:
    """Check that an admin of all groups remains without this operator. Raises: ProblemError last_admin.

    An admin that expires doesn't count.
    """
    if _stays(rights.of_row(row.role, row.grants), row.expires_at) and await conn.fetchval(ADMINS) == 1:
        raise ProblemError(
            "last_admin",
            f"{row.name} is the last admin of all groups whose token doesn't end; make another one first",
            field="name",
        )


def _stays(held: Rights, expires_at: datetime | None) -> bool:
    return held.everywhere() == "admin" and expires_at is None


def _earlier(end: datetime | None, other: datetime | None) -> bool:
    return end is not None and (other is None or end < other)


def _operator(row: OperatorRow, now: datetime) -> Operator:
    held = _shown(rights.of_row(row.role, row.grants))
    person = None
    if row.issuer is not None:
        person = ProvidersPerson(row.issuer, row.subject or "", row.shown_name)
    old = row.old_ends_at if row.old_ends_at is not None and row.old_ends_at > now else None
    return Operator(str(row.id), row.name, held, row.expires_at, row.created_at, row.last_used_at, old, person)


def _shown(held: Rights) -> list[HeldGrant]:
    return [HeldGrant(**grant) for grant in rights.to_rows(held)]


def _said(held: Rights) -> list[str]:
    """Return rights as the audit log shows them."""
    return [str(grant) for grant in held.grants]
