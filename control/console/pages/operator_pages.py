"""Operators: who may use control, with which rights, and until when. A token is shown only once, when it is made."""

import re
from typing import Any

import msgspec

from control.access.rights import WRITTEN_GRANT
from control.api import operators, pagination, request_input
from control.api.operations import Reply
from control.api.operators import ChangeOperator, HeldGrant, MadeOperator, NewOperator, Operator
from control.console import rendering
from control.console.pages import page_input
from control.console.pages.page_input import path_of
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

SHOWN = 100
"""Operators per page of the list."""
# An operator may be named `new`.
EVERY, NEW, ONE = "/operators", "/make-operator", "/operators/{name}"
SECONDS = {"m": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"(\d{1,6})\s*([mhd])")


def written(grant: HeldGrant) -> str:
    """Return a grant as the form writes it: a line `role@group (function, function)`."""
    functions = f" ({', '.join(grant.functions)})" if grant.functions else ""
    return grant.role + (f"@{grant.group}" if grant.group else "") + functions


async def show_list(visit: Visit) -> Reply:
    """GET /operators: those that the visitor may change."""
    query = pagination.Paging(visit.query.get("cursor") or None, SHOWN)
    found, next = await visit.items(operators.list_operators, Operator, query)
    rows = [(operator, [written(grant) for grant in operator.grants]) for operator in found]
    return await visit.html("operators.html", rows=rows, next=next)


async def show_new(visit: Visit) -> Reply:
    """GET /make-operator"""
    return await visit.html("operator_new.html", error=None, fields=visit.query)


async def make(visit: Visit) -> Reply:
    """POST /make-operator: the page with the token."""
    key = page_input.form_key(visit)
    try:
        wanted = {"name": visit.form.get("name", "").strip(), "grants": _grants(visit), "expires_in": _expiry(visit)}
        body = request_input.convert(wanted, NewOperator, "invalid_body")
        found = await visit.ask(operators.create, {}, None, body, key=key)
    except ProblemError as error:
        if error.status not in (404, 409, 422):
            raise
        return await visit.html("operator_new.html", error.status, error=error, fields=visit.form)
    made = msgspec.convert(found, MadeOperator)
    return await visit.html("operator_made.html", made=made, grants=[written(grant) for grant in made.grants])


async def show_one(visit: Visit) -> Reply:
    """GET /operators/{name}: its rights, and a form to change them."""
    return await _show_one(visit)


async def change(visit: Visit) -> Reply:
    """POST /operators/{name}"""
    key, path = page_input.form_key(visit), path_of(visit)
    ends = visit.form.get("ends", "")
    try:
        wanted: dict[str, Any] = {"grants": _grants(visit), "endless": ends == "never"}
        if ends == "in":
            wanted["expires_in"] = _expiry(visit)
        body = request_input.convert(wanted, ChangeOperator, "invalid_body")
        await visit.ask(operators.change, path, None, body, key=key)
    except ProblemError as error:
        if error.status not in (409, 422) and error.code != "unknown_group":
            raise
        return await _show_one(visit, error)
    return rendering.redirect(f"/operators/{path['name']}")


async def show_revoke(visit: Visit) -> Reply:
    """GET /operators/{name}/revoke"""
    return await visit.html("operator_revoke.html", operator=await _operator(visit), error=None)


async def revoke(visit: Visit) -> Reply:
    """POST /operators/{name}/revoke"""
    key, path = page_input.form_key(visit), path_of(visit)
    try:
        page_input.refuse_untyped(visit, str(path["name"]))
        await visit.ask(operators.revoke, path, key=key)
    except ProblemError as error:
        if error.status not in (409, 422):
            raise
        return await visit.html("operator_revoke.html", error.status, operator=await _operator(visit), error=error)
    return rendering.redirect("/operators")


async def _show_one(visit: Visit, error: ProblemError | None = None) -> Reply:
    operator = await _operator(visit)
    grants = "\n".join(written(grant) for grant in operator.grants)
    status = error.status if error else 200
    return await visit.html("operator.html", status, operator=operator, grants=grants, fields=visit.form, error=error)


async def _operator(visit: Visit) -> Operator:
    """Return the operator of the path. Raises: ProblemError unknown_operator, also if the visitor may not change it."""
    found: Operator = await visit.ask(operators.get, path_of(visit))
    return found


def _grants(visit: Visit) -> list[dict[str, Any]]:
    """Return the grants in the lines of a form. Raises: ProblemError invalid_body, when a line isn't a grant."""
    found = []
    for line in visit.form.get("grants", "").splitlines():
        if not line.strip():
            continue
        match = WRITTEN_GRANT.fullmatch(line.strip())
        if match is None:
            raise ProblemError(
                "invalid_body",
                f"{line.strip()[:100]!r} isn't written as role, role@group or push@group (function)",
                field="grants",
            )
        functions = match["functions"]
        names = None if functions is None else [name.strip() for name in functions.split(",")]
        found.append({"role": match["role"], "group": match["group"], "functions": names})
    return found


def _expiry(visit: Visit) -> int | None:
    """Return the seconds of a duration such as 90d, or None if none is given. Raises: ProblemError invalid_body."""
    text = visit.form.get("expires_in", "").strip()
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise ProblemError(
            "invalid_body", f"{text[:50]!r} is no time: a number with m, h or d, as 90d", field="expires_in"
        )
    return int(match[1]) * SECONDS[match[2]]


PAGES = (
    ConsolePage("GET", EVERY, show_list, "admin"),
    ConsolePage("GET", NEW, show_new, "admin"),
    ConsolePage("POST", NEW, make, "admin"),
    ConsolePage("GET", ONE, show_one, "admin"),
    ConsolePage("POST", ONE, change, "admin"),
    ConsolePage("GET", f"{ONE}/revoke", show_revoke, "admin"),
    ConsolePage("POST", f"{ONE}/revoke", revoke, "admin"),
)
