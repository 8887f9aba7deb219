"""Operators: who may use the API, each with a token and a role."""

from typing import Any, NamedTuple
from uuid import UUID

from control import tokens
from control.access import join_token_ends
from control.api import pagination, responses
from control.api.operations import ApiCall, Reply
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection


class OperatorRole(NamedTuple):
    """An operator's id and role."""

    id: UUID
    role: str


SQL = queries.load("operators")
TAKEN = SQL.value("taken", bool)
OPERATORS = SQL.rows("operators", responses.Operator)
OPERATOR = SQL.rows("operator", OperatorRole)
ADMINS = SQL.value("admins", int)


async def create(call: ApiCall) -> Reply:
    """POST /v1/operators. Only the token's hash is stored, so the same request again gets a new token."""
    body = call.body

    async def work(conn: Connection, _changed: Changed) -> responses.MadeOperator:
        if await conn.fetchval(TAKEN, body.name):
            raise ProblemError(
                "name_taken",
                f"there is or was an operator {body.name}: choose another name, so that the audit log is clear",
                field="name",
            )
        token = tokens.new_token("operator")
        now = call.services.clock.now()
        # Not announced: a replica looks up an operator that isn't in its cache.
        await conn.execute(SQL["add"], token.id, body.name, body.role, token.secret_hash, now)
        await call.audit(conn, "operator.create", body.name, after={"role": body.role})
        return responses.MadeOperator(str(token.id), body.name, body.role, token.text)

    async def renew(conn: Connection, changed: Changed, kept: dict[str, Any]) -> responses.MadeOperator:
        token = tokens.new_token("operator", UUID(kept["id"]))
        await conn.execute(SQL["renew"], token.id, token.secret_hash)
        changed.operators.add(str(token.id))
        await call.audit(conn, "operator.renew", kept["name"])
        return responses.MadeOperator(str(token.id), kept["name"], kept["role"], token.text)

    return await call.write(work, renew=renew)


async def list_operators(call: ApiCall) -> Reply:
    """GET /v1/operators: those that can sign in."""
    return await call.read(pagination.by_name(OPERATORS, call.query))


async def revoke(call: ApiCall) -> Reply:
    """DELETE /v1/operators/{name}."""
    name = call.path["name"]

    async def work(conn: Connection, changed: Changed) -> None:
        row = await conn.fetchrow(OPERATOR, name)
        if row is None:
            raise ProblemError("unknown_operator", f"there is no operator {name}", field="name")
        if row.role == "admin" and await conn.fetchval(ADMINS) == 1:
            raise ProblemError("last_admin", f"{name} is the last admin; make another one first", field="name")
        now = call.services.clock.now()
        await conn.execute(SQL["revoke"], row.id, now)
        await join_token_ends.end_of_operator(conn, name, now)
        changed.operators.add(str(row.id))
        await call.audit(conn, "operator.revoke", name, before={"role": row.role})

    return await call.write(work, status=204)
