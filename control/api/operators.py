"""Operators: who may use the API, each with a token and a role."""

from typing import Any
from uuid import UUID

from control.api import auth, pagination, responses
from control.api.operations import Answer, Call
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed

SQL = queries.load("operators")


async def create(call: Call) -> Answer:
    """POST /v1/operators. The token is kept as a hash alone: asked again under its key, it is replaced."""
    body = call.body

    async def work(conn: Any, _changed: Changed) -> responses.MadeOperator:
        if await conn.fetchval(SQL["taken"], body.name):
            raise ProblemError(
                "name_taken", f"there is or was an operator {body.name}; the audit needs another name", field="name"
            )
        token = auth.new_token("operator")
        now = call.services.clock.now()
        # Not announced: a replica looks up an operator that it doesn't know.
        await conn.execute(SQL["add"], token.id, body.name, body.role, token.secret_hash, now)
        await call.audit(conn, "operator.create", body.name, {"role": body.role})
        return responses.MadeOperator(str(token.id), body.name, body.role, token.text)

    async def renew(conn: Any, changed: Changed, kept: dict[str, Any]) -> responses.MadeOperator:
        token = auth.new_token("operator", UUID(kept["id"]))
        await conn.execute(SQL["renew"], token.id, token.secret_hash)
        changed.operators.add(str(token.id))
        return responses.MadeOperator(str(token.id), kept["name"], kept["role"], token.text)

    return await call.write(work, renew=renew)


async def list_operators(call: Call) -> Answer:
    """GET /v1/operators: those that can sign in."""
    paging = call.query
    after = pagination.read_cursor(paging.cursor, (str,)) or ("",)
    describe = pagination.each(lambda row: responses.Operator(row["name"], row["role"], row["created_at"]))

    async def work(conn: Any) -> responses.Page[responses.Operator]:
        def fetch(after: tuple[Any, ...], count: int) -> Any:
            return conn.fetch(SQL["operators"], *after, count)

        return await pagination.fill(fetch, describe, after, paging.limit, ("name",))

    return await call.read(work)


async def revoke(call: Call) -> Answer:
    """DELETE /v1/operators/{name}."""
    name = call.path["name"]

    async def work(conn: Any, changed: Changed) -> None:
        row = await conn.fetchrow(SQL["operator"], name)
        if row is None:
            raise ProblemError("unknown_operator", f"there is no operator {name}", field="name")
        if row["role"] == "admin" and await conn.fetchval(SQL["admins"]) == 1:
            raise ProblemError("last_admin", f"{name} is the last admin; make another one first", field="name")
        await conn.execute(SQL["revoke"], row["id"], call.services.clock.now())
        changed.operators.add(str(row["id"]))
        await call.audit(conn, "operator.revoke", name, {})

    return await call.write(work, status=204)
