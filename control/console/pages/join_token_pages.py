"""Join tokens: each lets one machine become a node. A token is shown once, in the answer that made it."""

import msgspec

from control.access.join_tokens import State
from control.api import join_tokens, request_input
from control.api.join_tokens import JoinToken, MadeJoinToken, NewJoinToken
from control.api.operations import Reply
from control.console import rendering
from control.console.pages import page_input
from control.console.pages.page_input import path_of
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

SHOWN = 50
"""Tokens per page of the list."""
EVERY, NEW, REVOKE = "/join-tokens", "/join-tokens/new", "/join-tokens/{id}/revoke"
STATES: tuple[State, ...] = ("open", "used", "expired", "revoked")
TYPED = 8
"""Characters of a token's id that are typed to confirm its revocation."""


async def show_list(visit: Visit) -> Reply:
    """GET /join-tokens?state="""
    wanted = {"cursor": visit.query.get("cursor") or None, "limit": SHOWN, "state": visit.query.get("state") or None}
    query = request_input.convert(wanted, join_tokens.JoinTokenFilter, "invalid_parameter")
    found, next = await visit.items(join_tokens.list_tokens, JoinToken, query)
    return await visit.html("join_tokens.html", found=found, next=next, state=query.state, states=STATES)


async def show_new(visit: Visit) -> Reply:
    """GET /join-tokens/new"""
    return await _show_new(visit)


async def make(visit: Visit) -> Reply:
    """POST /join-tokens/new: the page with the token."""
    key, fields = page_input.form_key(visit), visit.form
    hours = fields.get("hours", "1")
    wanted = {
        "group": fields.get("group", ""),
        "expires_in": int(hours) * 3600 if hours.isdecimal() and len(hours) < 5 else hours,
        "rejoin": fields.get("rejoin", "").strip() or None,
    }
    try:
        body = request_input.convert(wanted, NewJoinToken, "invalid_body")
        found = await visit.ask(join_tokens.create, {}, None, body, key=key)
    except ProblemError as error:
        if error.status not in (404, 409, 422):
            raise
        return await _show_new(visit, error)
    return await visit.html("join_token_made.html", made=msgspec.convert(found, MadeJoinToken), rejoin=body.rejoin)


async def show_revoke(visit: Visit) -> Reply:
    """GET /join-tokens/{id}/revoke"""
    return await visit.html("join_token_revoke.html", id=path_of(visit)["id"], typed_id=TYPED, error=None)


async def revoke(visit: Visit) -> Reply:
    """POST /join-tokens/{id}/revoke"""
    key, path = page_input.form_key(visit), path_of(visit)
    id = str(path["id"])
    try:
        page_input.refuse_untyped(visit, id[:TYPED])
        await visit.ask(join_tokens.revoke, path, key=key)
    except ProblemError as error:
        if error.status not in (409, 422):
            raise
        return await visit.html("join_token_revoke.html", error.status, id=id, typed_id=TYPED, error=error)
    return rendering.redirect(EVERY)


async def _show_new(visit: Visit, error: ProblemError | None = None) -> Reply:
    summary = (await visit.services.standings.summary()).of(visit.rights.groups("admin"))
    # The form suggests these; others are typed.
    names = [group.name for group in summary.groups][:200]
    status = error.status if error else 200
    return await visit.html("join_token_new.html", status, names=names, fields=visit.form, error=error)


PAGES = (
    ConsolePage("GET", EVERY, show_list, "admin"),
    ConsolePage("GET", NEW, show_new, "admin"),
    ConsolePage("POST", NEW, make, "admin"),
    ConsolePage("GET", REVOKE, show_revoke, "admin"),
    ConsolePage("POST", REVOKE, revoke, "admin"),
)
