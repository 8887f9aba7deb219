"""A request for a page: its visitor, what it asks for, and what a page can do with it.

Pages read and change nothing themselves: they call the operations of the API as the operator who is signed in.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope

from control.access import sessions
from control.access.auth import AuthError, Principal
from control.access.rights import Rights, Role
from control.access.sessions import ConsoleSession
from control.api import operations, request_input
from control.api.operations import ApiCall, Reply
from control.api.services import Services
from control.console import hub, rendering
from control.console.node_functions import NodeFunctions
from control.problems import ProblemError
from control.storage import idempotency
from control.telemetry.fleet_summary import FleetSummary

T = TypeVar("T")
ShowPage = Callable[["Visit"], Awaitable[Reply]]
ShowParts = Callable[["Visit"], Awaitable[hub.Make]]

FORM_BYTES = 256 * 1024
"""Maximum bytes of a form."""
FIELDS = 2000
"""Maximum fields of a form."""
FORM_TYPE = b"application/x-www-form-urlencoded"
SIGN_IN = "/sign-in"
THEMES = ("system", "light", "dark")
THEME_COOKIE = "skerry-theme"


@dataclass(frozen=True)
class ConsolePage:
    """One method of one address of the console."""

    method: Literal["GET", "POST"]
    path: str
    handler: ShowPage
    role: Role | None = "read"
    """The role that an operator needs; None: anybody may, signed in or not."""
    everywhere: bool = False
    """Whether the role is needed for all groups. If not, one group is enough, and the operations that the page calls
    check which."""
    live: ShowParts | None = None
    """The function that renders the page's live parts, if it has any. They are the same for all operators with the same
    rights, so they contain no form."""
    live_by: tuple[str, ...] = ()
    """The fields of the query that the live parts depend on; all others are ignored."""


@dataclass(frozen=True)
class Visitor:
    """Who requests a page."""

    operator: Principal
    session: ConsoleSession | None = None
    """None if the browser, or a script, sends an operator's token itself."""


@dataclass(frozen=True)
class Visit:
    """One request for a page, whose visitor is known."""

    services: Services
    path: Mapping[str, str]
    """The parameters in the path."""
    query: QueryParams
    form: QueryParams
    """The fields of a POST."""
    scope: Scope
    receive: Receive
    visitor: Visitor = Visitor(operations.NOBODY)
    """The visitor; an operator with the name '' if nobody is signed in."""

    @property
    def operator(self) -> Principal:
        """The operator who visits."""
        return self.visitor.operator

    @property
    def form_token(self) -> str:
        """The token that each form must send back in the field `form_token`."""
        return self.visitor.session.form_token if self.visitor.session else ""

    @property
    def rights(self) -> Rights:
        """The rights of the operator."""
        return self.operator.rights

    @property
    def address(self) -> str:
        """The path with its query, as a browser shows them."""
        return address(self.scope)

    @property
    def url(self) -> str:
        """The URL of control, without a path: from its settings, or else from the browser's request."""
        host = next((value.decode("latin-1") for name, value in self.scope["headers"] if name == b"host"), "")
        return self.services.settings.public_url or f"{self.scope['scheme']}://{host}"

    def address_with(self, **fields: str) -> str:
        """Return the path with its query, without a cursor, and with these fields."""
        kept = [(name, text) for name, text in self.query.multi_items() if name != "cursor" and name not in fields]
        query = urlencode([*kept, *fields.items()])
        return f"{self.scope['path']}?{query}" if query else str(self.scope["path"])

    @property
    def theme(self) -> str:
        """`light`, `dark`, or `system` if the operator has chosen neither."""
        try:
            found = sessions.cookie(self.scope, THEME_COOKIE)
        except AuthError:
            return "system"
        return found if found in THEMES else "system"

    @property
    def now(self) -> datetime:
        """The current time."""
        return self.services.clock.now()

    @property
    def hub(self) -> hub.Hub:
        """The replica's streams."""
        found: hub.Hub = self.scope["app"].state.hub
        return found

    @property
    def node_functions(self) -> NodeFunctions:
        """The nodes that the replica asks for their counts."""
        found: NodeFunctions = self.scope["app"].state.node_functions
        return found

    def check_role(self, page: ConsolePage) -> None:
        """Check the page's role. Raises: AuthError, when the operator doesn't have it."""
        if page.role is None:
            return
        if page.everywhere:
            self.operator.need(page.role, None)
        else:
            self.operator.need_somewhere(page.role)

    async def ask(
        self,
        operation: operations.Handler,
        path: Mapping[str, Any] | None = None,
        query: Any = None,
        body: Any = None,
        *,
        key: str = "",
    ) -> Any:
        """Call an operation of the API as the operator, and return the body of its answer.

        `key`: the idempotency key of a change, so that a form sent twice makes the change once.
        Raises: ProblemError, as the operation does.
        """
        digest = idempotency.digest("POST", self.scope["path"], msgspec.json.encode((path, body)), b"") if key else ""
        call = ApiCall(self.services, path or {}, self.scope, self.receive, self.operator, "", "", key, digest)
        return (await operation(call, **operations.inputs(body, query))).body

    async def items(
        self, operation: operations.Handler, type: type[T], query: Any, path: Mapping[str, Any] | None = None
    ) -> tuple[list[T], str | None]:
        """Return a page of one of the API's lists, and the cursor of the next page."""
        found = await self.ask(operation, path, query)
        return [msgspec.json.decode(item, type=type) for item in found.items], found.next

    async def html(self, template: str, status: int = 200, *, kind: str = "", **values: Any) -> Reply:
        """Return the answer with a page of this template and the navigation.

        `kind`: which page it is, if one address shows one of several; the page is reloaded when that changes.
        """
        values |= {"visit": self, "key": form_key(), "kind": kind, "fleet": await self.fleet()}
        return rendering.page(rendering.text(template, self.now, values), status)

    def html_alone(self, template: str, status: int = 200, headers: rendering.Headers = (), **values: Any) -> Reply:
        """Return the answer with a page without the navigation, which needs no database."""
        values |= {"visit": self, "key": form_key(), "kind": ""}
        return rendering.page(rendering.text(template, self.now, values), status, headers)

    async def fleet(self) -> FleetSummary | None:
        """Return the state of the nodes in the operator's groups; None if it can't be read now."""
        try:
            return (await self.services.standings.summary()).of(self.rights.groups("read"))
        except ProblemError:
            return None


async def visitor(services: Services, scope: Scope) -> Visitor:
    """Return the visitor: who is signed in or sends a token. Raises: AuthError, when nobody does."""
    if any(name == b"authorization" for name, _ in scope["headers"]):
        return Visitor(await services.sessions.operator(scope))
    session = await services.sessions.signed_in(scope)
    return Visitor(session.operator, session)


def form_key() -> str:
    """Return an idempotency key for the forms of a page."""
    return secrets.token_urlsafe(12)


def address(scope: Scope) -> str:
    """Return the path of a request with its query."""
    query = scope["query_string"].decode("latin-1")
    return f"{scope['path']}?{query}" if query else str(scope["path"])


async def form(services: Services, scope: Scope, receive: Receive) -> QueryParams:
    """Return the fields of a POST. Raises: ProblemError, when it isn't a form, or too large."""
    for name, value in scope["headers"]:
        if name == b"content-type" and value.partition(b";")[0].strip().lower() != FORM_TYPE:
            raise ProblemError("unsupported_media_type", f"send a form, as {FORM_TYPE.decode()}")
    raw = await request_input.read_body(services.settings, services.clock, scope, receive, FORM_BYTES)
    try:
        fields = parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=FIELDS, strict_parsing=bool(raw))
    except ValueError:
        raise ProblemError("invalid_body", f"this isn't a form of at most {FIELDS} fields") from None
    if any("\x00" in text for pair in fields for text in pair):
        raise ProblemError("invalid_body", "there is a NUL character in the form")
    return QueryParams(fields)
