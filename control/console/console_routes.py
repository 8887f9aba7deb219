"""All pages of the console, and how a request is handled: the visitor, the form, the page's role, and the answer."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import groupby
from urllib.parse import quote

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from control.access import csrf
from control.access.auth import AuthError
from control.api import operations
from control.api.operations import Reply
from control.api.services import Services
from control.console import assets, live, rendering, visits
from control.console.pages import (
    audit_page,
    call_pages,
    error_page,
    function_pages,
    go_to,
    join_token_pages,
    naming_pages,
    node_acts,
    node_data,
    node_detail,
    node_list,
    node_log,
    operator_pages,
    overview,
    release_pages,
    rollout_pages,
    schema_pages,
    settings_page,
    sign_in_pages,
    theme,
)
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError
from control.storage.connection_quotas import ASKS

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
SECURITY: rendering.Headers = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # Not no-referrer: browsers would send `null` as the origin of a form.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""The headers of every answer at the console's addresses."""


def find(path: str) -> tuple[ConsolePage, Mapping[str, str]] | None:
    """Return the page that GET shows at a path, with the path's parameters; None if there is no page."""
    for route in routes():
        match = route.path_regex.match(path)
        if match is not None and isinstance(route.app, ConsoleEndpoint):
            page = route.app.by_method.get("GET")
            return None if page is None else (page, match.groupdict())
    return None


PAGES: tuple[ConsolePage, ...] = (
    *sign_in_pages.PAGES,
    *overview.PAGES,
    *node_list.PAGES,
    *node_detail.PAGES,
    *node_acts.PAGES,
    *node_data.PAGES,
    *node_log.PAGES,
    *naming_pages.PAGES,
    *release_pages.PAGES,
    *rollout_pages.PAGES,
    *function_pages.PAGES,
    *call_pages.PAGES,
    *schema_pages.PAGES,
    *audit_page.PAGES,
    *operator_pages.PAGES,
    *join_token_pages.PAGES,
    *settings_page.PAGES,
    *go_to.PAGES,
    *error_page.PAGES,
    *theme.PAGES,
    live.page(find),
)


class ConsoleEndpoint:
    """The ASGI application at one address of the console."""

    def __init__(self, pattern: str, by_method: dict[str, ConsolePage]) -> None:
        self.pattern = pattern
        self.by_method = by_method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises: ProblemError, which `problem_page` turns into a page."""
        page = self.by_method.get(scope["method"])
        if page is None:
            allowed = ", ".join(sorted(self.by_method))
            raise ProblemError("method_not_allowed", f"{self.pattern} takes {allowed}", allow=allowed)
        services: Services = scope["app"].state.services
        try:
            reply = await page.handler(await _visit(services, page, scope, receive))
        except AuthError as error:
            if error.status != 401 or page.method != "GET" or page.path == live.PATH:
                raise
            reply = rendering.redirect(f"{visits.SIGN_IN}?next={quote(visits.address(scope), safe='/')}")
        except ProblemError:
            raise
        except Exception as error:
            raise operations.internal(scope) from error
        await guarded(reply)(scope, receive, send)


class AssetEndpoint:
    """The ASGI application that serves the console's static files."""

    pattern = "/static/{digest}/{name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises: ProblemError."""
        if scope["method"] != "GET":
            raise ProblemError("method_not_allowed", f"{self.pattern} takes GET", allow="GET")
        encodings = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")
        takes_gzip = re.search(rb"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", encodings) is not None
        reply = assets.answer(**scope["path_params"], takes_gzip=takes_gzip)
        await guarded(reply)(scope, receive, send)


def guarded(reply: Reply) -> Reply:
    """Return the answer with the headers that every answer of the console has."""
    return replace(reply, headers=(*reply.headers, *SECURITY))


@cache
def routes() -> list[Route]:
    """Return the routes of all pages, fixed paths before patterns."""
    by_path = sorted(PAGES, key=lambda page: (page.path.count("{"), page.path))
    found = groupby(by_path, key=lambda page: page.path)
    made = [Route(path, ConsoleEndpoint(path, {page.method: page for page in pages})) for path, pages in found]
    made.append(Route(AssetEndpoint.pattern, AssetEndpoint()))
    for route in made:
        # Starlette would match a path that ends with a line break.
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")
    return made


def is_of_console(scope: Scope) -> bool:
    """Return whether a request is answered, or refused, with a page: at the console's addresses, and for browsers
    where nothing exists."""
    endpoint = scope.get("endpoint")
    if endpoint is not None:
        return isinstance(endpoint, ConsoleEndpoint | AssetEndpoint)
    accepts = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return b"text/html" in accepts and not scope["path"].startswith("/v1/")


def problem_page(request: Request, error: ProblemError) -> Reply:
    """Return the page for a request that is refused or fails, with the API's status and code."""
    services: Services = request.app.state.services
    visit = Visit(services, {}, QueryParams(), QueryParams(), request.scope, request.receive)
    kept = [pair for pair in operations.refusal(error).headers if pair[0] in (b"retry-after", b"allow")]
    call_id = request.scope["request_id"].decode()
    # An act on a release that is refused leads back to the release.
    at = request.scope.get("path_params", {})
    back = f"/releases/{quote(at['group'])}/{quote(at['number'])}" if {"group", "number"} <= at.keys() else ""
    return guarded(visit.html_alone("problem.html", error.status, tuple(kept), error=error, call_id=call_id, back=back))


async def _visit(services: Services, page: ConsolePage, scope: Scope, receive: Receive) -> Visit:
    """Check the visitor, then the form. Raises: ProblemError."""
    who, form = visits.Visitor(operations.NOBODY), QueryParams()
    if page.role is not None:
        await services.fleet.read_late()
        who = await visits.visitor(services, scope)
        ASKS.set(who.operator.id)
    if page.method == "POST":
        form = await visits.form(services, scope, receive)
        if who.session is not None:
            csrf.check(scope, who.session.form_token, form.getlist("form_token"), services.settings.public_url)
        elif page.role is None:
            csrf.check_origin(scope, services.settings.public_url)
    query = QueryParams(scope["query_string"])
    if any("\x00" in text for pair in query.multi_items() for text in pair):
        raise ProblemError("invalid_parameter", "there is a NUL character in the address")
    visit = Visit(services, scope["path_params"], query, form, scope, receive, who)
    visit.check_role(page)
    if page.role is not None:
        services.fleet.refuse_stale()
    return visit
