"""The messages to the processes that make calls without a node, and the requests in them. Nothing here loads WasmEdge
or libsql."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, structs

from control.protocol.manifest import TICK_HEADERS, Manifest, SqlGrant, sql_grant
from edge_runtime.guests.invocation import Request, SingleCallResult
from edge_runtime.ipc.request_head import RequestUnfit
from edge_runtime.oneshot.given_answers import GivenAnswer
from edge_runtime.web.routes import Match, Table

_METHOD: Final = re.compile(r"[A-Z]{1,16}")
_SENT: Final = re.compile(r"[!-~]*")
"""The characters that a path or a query has when it is sent."""
_URL: Final = re.compile(r"https?://([^/]+)(.*)", re.DOTALL)
_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[^\0-\x08\n-\x1f\x7f]*")


class SingleCallRequest(Struct):
    """One call of a module."""

    file: str
    manifest: Manifest
    request: Request
    cache: str
    """The folder of AOT files; empty if the module runs on the interpreter."""
    database: str = ""
    """Path of the libsql file for the call's SQL; empty if it has none."""
    secrets: dict[str, str] = {}
    parent: int = 0
    """Id of the process whose end also ends this one; 0 for none."""
    log: int = -1
    """Descriptor of memory (`progress_page`) that keeps the call's log in case this process is killed; -1 for none."""
    places: bool = False
    """Whether a trap reports its function in the module; only for the interpreter."""
    fence: str = "required"
    """`required`: every part of the fence must be there. `partial`: as much of it as this machine has."""
    name: str = ""
    """The function's name; if empty, the file's name without its extension."""
    manifest_given: bool = True
    """Whether `manifest` is the author's. If not, no messages blame the manifest for denials."""
    http: list[GivenAnswer] = []
    """What its HTTP requests are answered; without an answer they fail."""

    @property
    def path(self) -> Path:
        return Path(self.file).absolute()

    @property
    def grant(self) -> SqlGrant:
        """What the call may do with its database."""
        return sql_grant(self.manifest, self.request.method)


def made_request(method: str, path: str, query: str, headers: Iterable[tuple[str, str]], body: bytes) -> Request:
    """Return a request as a node would make it from what a client sends. `path` is below the function's name; or, for
    `by_route`, a path of the node's HTTP or a URL, whose host is then the request's.

    Raises: RequestUnfit, when no client could send it; the message says why.
    """
    headers = list(headers)
    if url := _URL.fullmatch(path):
        if not _HOST.fullmatch(url[1]):
            raise RequestUnfit(f"{url[1]!r} in the URL is no host")
        headers, path = [("host", url[1]), *headers], url[2] or "/"
    if not _METHOD.fullmatch(method):
        raise RequestUnfit(f"{method!r} is no method: it has letters, 16 at most")
    if not (_SENT.fullmatch(path) and _SENT.fullmatch(query)):
        raise RequestUnfit("the path and the query must be percent-encoded")
    sent = []
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise RequestUnfit(f"{f'{name}: {value}'[:80]!r} is no header")
        if name.lower().replace("_", "-") in TICK_HEADERS:
            # A node takes them from no client.
            continue
        # As it comes over the network: one byte per character.
        sent.append((name.lower(), value.encode().decode("latin-1")))
    hosts = sum(name == "host" for name, _ in sent)
    if hosts > 1:
        raise RequestUnfit(f"it names its host {hosts} times, by Host headers or the URL")
    if not hosts:
        sent.insert(0, ("host", "localhost"))
    if body:
        sent = [
            *((name, value) for name, value in sent if name != "content-length"),
            ("content-length", str(len(body))),
        ]
    return Request(method, path, query, sent, body)


def by_route(request: Request, manifest: Manifest) -> Request:
    """Return a request, for a path of the node's HTTP, as a node would make it: the manifest's route must match it.

    Raises: RequestUnfit, when the route doesn't match.
    """
    route = manifest.route
    if route is None:
        raise RequestUnfit(f"the manifest has no route, so {request.path} leads to no function")
    table, host = Table({"": route}), dict(request.headers).get("host", "")
    if route.hosts and not table.names(host.encode("latin-1")):
        raise RequestUnfit(
            f"the route is for {', '.join(route.hosts)}, and the request for {host}: give a URL, "
            f"http://{route.hosts[0].replace('*', 'www')}{request.path}, or a Host header"
        )
    match = table.match(request.method, request.path, host.encode("latin-1"))
    if not isinstance(match, Match):
        methods = "|".join(route.methods) or "every method of"
        raise RequestUnfit(f"the route, {methods} {route.path}, doesn't take {request.method} {request.path}")
    return structs.replace(request, script=match.script, path=match.path, route=match.route, params=match.params)


class ProjectChange(Struct):
    """A schema change for the database that a call gets."""

    name: str
    """Its name in messages."""
    sql: str


class FreshCall(Struct):
    """One call on its own database."""

    file: str
    name: str
    """The function's name."""
    manifest: dict[str, Any]
    """As its author wrote it."""
    method: str
    path: str
    """A path below the function's name, or with `routed` a path of the node's HTTP or a URL."""
    routed: bool = False
    query: str = ""
    headers: list[tuple[str, str]] = []
    tick: list[tuple[str, str]] = []
    """If the node makes the call by itself: the headers that say so, which no client can send."""
    body: bytes = b""
    secrets: dict[str, str] = {}
    http: list[GivenAnswer] = []
    """As in `SingleCallRequest`."""
    before: str = ""
    """Statements that are run before the call, after the schema's."""
    after: list[str] = []
    """Statements whose rows are reported, run on the database as the call leaves it."""


class FreshCalls(Struct):
    """The input of `fresh_calls`: calls with the same schema."""

    calls: list[FreshCall]
    schema: list[ProjectChange]
    parent: int
    """Id of the process whose end also ends this one."""
    fence: str = "required"
    """As in `SingleCallRequest`."""


class FreshCallDone(Struct, omit_defaults=True):
    """The output of `fresh_calls` for one call."""

    number: int
    """The call's position among those requested, from 0."""
    result: SingleCallResult
    part: str = ""
    """What failed, if not the call itself: `schema`, `before`, or `after`; `result` has the error."""
    rows: list[list[list[Any]]] = []
    """The rows of each statement of `after`; a BLOB is {"$blob": base64}."""
