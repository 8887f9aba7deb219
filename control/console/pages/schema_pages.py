"""The schema: the list of changes, one change, and its forms.

A change's page shows its text, its revisions, which nodes have it, and what it can do to nodes. The forms register a
new change or a new text for one, or withdraw one before any node has it; the plan is shown first.
"""

from typing import Any

import msgspec

from control.access.auth import AuthError
from control.api import pagination, releases, request_input, schema
from control.api.operations import Reply
from control.api.schema import (
    AmendSchemaChange,
    ListedSchemaChange,
    NewSchemaChange,
    SchemaChange,
    SchemaChangeHistory,
    SchemaChangePlan,
)
from control.console import rendering
from control.console.pages import page_input
from control.console.pages.page_input import path_of
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

SHOWN = 25
"""Changes per page of the list."""
TEXT = 40_000
"""Characters of a change's text that are shown."""
EVERY, ONE = "/schema", "/schema/{number}"
NEW, AMEND, WITHDRAW = "/schema/new", "/schema/{number}/amend", "/schema/{number}/withdraw"
LONGEST = 30_000
"""Maximum characters of a text that can be edited on the page; longer ones are edited in the terminal."""


async def show_list(visit: Visit) -> Reply:
    """GET /schema: the newest changes first, or those from a number down."""
    newest: int = await visit.ask(schema.count_changes)
    top = visit.query.get("from", "")
    last = min(newest, int(top)) if top.isdecimal() and 0 < len(top) < 9 else newest
    first = max(0, last - SHOWN)
    # The API lists the oldest first.
    query = pagination.Paging(pagination.write_cursor(first), max(1, last - first))
    found, _ = await visit.items(schema.list_changes, ListedSchemaChange, query)
    rows = [change for change in found if change.number <= last]
    # Long texts may have made the API's page end early.
    while rows and rows[-1].number < last:
        query = pagination.Paging(pagination.write_cursor(rows[-1].number), last - rows[-1].number)
        rows += (await visit.items(schema.list_changes, ListedSchemaChange, query))[0]
    return await visit.html("schema.html", rows=rows[::-1], newest=newest, first=first)


async def show_one(visit: Visit) -> Reply:
    """GET /schema/{number}?revision="""
    change: SchemaChangeHistory = await visit.ask(schema.get_change, path_of(visit))
    shown: SchemaChange = change
    wanted = visit.query.get("revision", "")
    if wanted:
        found = [revision for revision in change.revisions if str(revision.revision) == wanted]
        if not found:
            raise ProblemError(
                "invalid_parameter",
                f"change {change.number} has no revision {wanted[:20]}, or one so old that it isn't shown",
                field="revision",
            )
        shown = found[0]
    return await visit.html(
        "schema_change.html",
        change=change,
        shown=shown,
        sql=shown.sql[:TEXT],
        cut=max(0, len(shown.sql) - TEXT),
        newest=await visit.ask(schema.count_changes),
        may=visit.rights.allows("deploy", None),
    )


async def show_new(visit: Visit) -> Reply:
    """GET /schema/new"""
    return await visit.html("schema_new.html", fields=visit.query, plan=None, error=None)


async def add(visit: Visit) -> Reply:
    """POST /schema/new: show the plan, or register the change under the number that the plan had."""
    key, fields, plan, failed = page_input.form_key(visit), visit.form, None, None
    planned = fields.get("number", "") if fields.get("do") == "add" else ""
    try:
        wanted: dict[str, Any] = {"name": fields.get("name", "").strip(), "sql": _sql(visit)}
        if planned:
            body = _body({**wanted, "number": planned}, NewSchemaChange)
            made = msgspec.to_builtins(await visit.ask(schema.add, {}, releases.PlanFor(), body, key=key))
            return rendering.redirect(f"/schema/{made['number']}")
        plan = await visit.ask(schema.add, {}, releases.PlanFor(plan=True), _body(wanted, NewSchemaChange))
    except ProblemError as error:
        failed = _shown(error)
    return await visit.html("schema_new.html", failed.status if failed else 200, fields=fields, plan=plan, error=failed)


async def show_amend(visit: Visit) -> Reply:
    """GET /schema/{number}/amend"""
    change = await _change(visit)
    return await _show_amend(visit, change, change.sql, None, None)


async def amend(visit: Visit) -> Reply:
    """POST /schema/{number}/amend: show the plan, or amend if the plan is still the one that was shown."""
    key, path, fields = page_input.form_key(visit), path_of(visit), visit.form
    change, plan, failed = await _change(visit), None, None
    sql = fields.get("sql", "").replace("\r\n", "\n")
    try:
        wanted: dict[str, Any] = {"sql": _sql(visit)}
        if fields.get("do") == "amend":
            allowed = {name: page_input.flag(fields.get(name)) for name in ("allow_loss", "allow_stall")}
            if allowed["allow_loss"]:
                page_input.refuse_untyped(visit, str(change.number))
            body = _body({**wanted, **allowed, "plan_digest": fields.get("plan_digest", "")}, AmendSchemaChange)
            await visit.ask(schema.amend, path, releases.PlanFor(), body, key=key)
            return rendering.redirect(f"/schema/{change.number}")
        plan = await _plan(visit, sql)
    except ProblemError as error:
        failed = _shown(error)
    if failed is not None and fields.get("do") == "amend":
        try:
            plan = await _plan(visit, sql)
        except ProblemError as error:
            failed = _shown(error)
    return await _show_amend(visit, change, sql, plan, failed)


async def show_withdraw(visit: Visit) -> Reply:
    """GET /schema/{number}/withdraw"""
    return await visit.html("schema_withdraw.html", change=await _change(visit), error=None)


async def withdraw(visit: Visit) -> Reply:
    """POST /schema/{number}/withdraw"""
    key, path = page_input.form_key(visit), path_of(visit)
    try:
        page_input.refuse_untyped(visit, str(path["number"]))
        await visit.ask(schema.withdraw, path, key=key)
    except ProblemError as error:
        failed = _shown(error)
        return await visit.html("schema_withdraw.html", failed.status, change=await _change(visit), error=failed)
    return rendering.redirect(f"/schema/{path['number']}")


async def _show_amend(
    visit: Visit, change: SchemaChangeHistory, sql: str, plan: SchemaChangePlan | None, error: ProblemError | None
) -> Reply:
    status = error.status if error else 200
    return await visit.html(
        "schema_amend.html",
        status,
        change=change,
        sql=sql,
        too_long=len(sql) > LONGEST,
        plan=plan,
        fields=visit.form,
        error=error,
    )


async def _plan(visit: Visit, sql: str) -> SchemaChangePlan:
    body = _body({"sql": sql}, AmendSchemaChange)
    found: SchemaChangePlan = await visit.ask(schema.amend, path_of(visit), releases.PlanFor(plan=True), body)
    return found


async def _change(visit: Visit) -> SchemaChangeHistory:
    found: SchemaChangeHistory = await visit.ask(schema.get_change, path_of(visit))
    return found


def _sql(visit: Visit) -> str:
    """Return the text of the form as it was written: browsers send each line ending as two characters."""
    sql = visit.form.get("sql", "").replace("\r\n", "\n")
    if len(sql) > LONGEST:
        raise ProblemError(
            "invalid_body", f"a text of more than {LONGEST} characters is registered in a terminal", field="sql"
        )
    return sql


def _body(wanted: dict[str, Any], type: Any) -> Any:
    return request_input.convert(wanted, type, "invalid_body", strict=False)


def _shown(error: ProblemError) -> ProblemError:
    """Return a refusal for the form's page to show. Raises: ProblemError, when it isn't about the form."""
    if isinstance(error, AuthError) or error.status not in (404, 409, 422):
        raise error
    return error


PAGES = (
    ConsolePage("GET", EVERY, show_list),
    ConsolePage("GET", ONE, show_one),
    ConsolePage("GET", NEW, show_new, "deploy", everywhere=True),
    ConsolePage("POST", NEW, add, "deploy", everywhere=True),
    ConsolePage("GET", AMEND, show_amend, "deploy", everywhere=True),
    ConsolePage("POST", AMEND, amend, "deploy", everywhere=True),
    ConsolePage("GET", WITHDRAW, show_withdraw, "deploy", everywhere=True),
    ConsolePage("POST", WITHDRAW, withdraw, "deploy", everywhere=True),
)
