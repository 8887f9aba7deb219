"""What a node's local HTTP serves: functions, and the node's own pages below /_skerry/."""

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import orjson

from control.protocol import trace_context
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import Outcome, Refusal, name_of, refused, release_changing
from edge_runtime.dispatch.pool import Hold, Pool
from edge_runtime.ipc.frames import LocalRelease
from edge_runtime.ipc.request_head import Via
from edge_runtime.settings import EdgeSettings
from edge_runtime.telemetry.call_traces import CallTracer, Passed
from edge_runtime.web import site_policy
from edge_runtime.web.callers import BEARER, CERTIFICATE, Caller, Callers
from edge_runtime.web.connection import HttpConnection
from edge_runtime.web.parser import REQUEST_ID, TRACE, Exchange, new_request_id, too_large
from edge_runtime.web.routes import Match, Table
from edge_runtime.web.site_policy import PageRequest, PageRule

log = logging.getLogger("skerry.front")

Headers = list[tuple[bytes, bytes]]

FUNCTIONS: Final = b"/functions/"
OWN: Final = b"/_skerry/"
HEALTH: Final = b"/_skerry/healthz"
TRACEPARENT: Final = b"traceparent"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


class EdgeApp:
    """Decides who may ask, which function a request is for, and hands it to the pool as a call."""

    def __init__(
        self,
        settings: EdgeSettings,
        pool: Pool,
        status: Callable[[], dict[str, Any]],
        metrics: Callable[[], bytes],
        callers: Callers | None = None,
    ) -> None:
        """`status` returns the document of /_skerry/status, `metrics` the text of /_skerry/metrics."""
        self._callers = callers
        self._body_limit = settings.body_limit
        self._pool = pool
        self.submit = pool.submit
        """Takes each call. `skerry-edge dev` replaces it with a function that watches the call and calls this one."""
        self.tracer: CallTracer | None = None
        """Makes the spans of calls, if traces are sent."""
        self._release: LocalRelease | None = None
        """The release whose routes are in the table."""
        self._table = Table({})
        self._wanting: frozenset[str] = frozenset()
        """Functions of that release that get the headers `parser.TRACE`."""
        self._rules: dict[str, PageRule] = {}
        """By function of that release: what it lets web pages of other origins do, if anything."""
        self._pages: dict[bytes, tuple[bytes, Callable[[], bytes]]] = {
            # For process supervisors, which have no token: the page says only that the front is running.
            HEALTH: (b"text/plain; charset=utf-8", lambda: b"ok\n"),
            b"/_skerry/status": (b"application/json", lambda: orjson.dumps(status(), option=orjson.OPT_INDENT_2)),
            b"/_skerry/metrics": (b"text/plain; version=0.0.4; charset=utf-8", metrics),
        }
        self.token = settings.token.encode() if settings.token else None
        """The node's token, if it has one."""
        own = settings.listen.rpartition(":")[0]
        self._hosts = frozenset(name.lower().encode() for name in (*_LOOPBACK, own, *settings.hosts))

    def resolve(self, method: str, path: bytes, host: bytes | None) -> Match | Refusal:
        """Return the function that a request is for, or why no function fits. `host` is as in `Exchange`."""
        if path.startswith(FUNCTIONS):
            end = path.find(b"/", len(FUNCTIONS))
            script, rest = (path, b"") if end < 0 else (path[:end], path[end:])
            return Match(script[len(FUNCTIONS) :].decode(), "", script.decode(), rest.decode(), [])
        if self._release is None and self._pool.hold is Hold.ALL:
            return release_changing("The node is starting: it isn't known yet which routes it has")
        match = self._table.match(method, path.decode("latin-1"), host or b"")
        if isinstance(match, Match):
            return match
        if match:
            allow = ", ".join(match)
            return refused("method_unknown", f"The route takes {allow}, and not {method}.", allow=allow)
        at = f" for the host {_shown(host)}" if self._table.by_host else ""
        there = "There are /functions/NAME, and the node's own pages under /_skerry/."
        return refused("path_unknown", f"No function's route is this path{at}. {there}")

    def admit(self, exchange: Exchange, certificate: bytes | None = None) -> Refusal | None:
        """Return why a request whose head has come is refused; None if it isn't. `certificate` is the sha256 of the
        client's, empty if it has presented none, None in plain HTTP."""
        path = exchange.path
        if self._pool.release is not self._release:
            self._follow(self._pool.release)
        if exchange.site is not None or exchange.origin is not None:
            refusal = self._of_page(exchange, b"http://" if certificate is None else b"https://")
            if refusal is not None or exchange.target is not None:
                return refusal
        if path.startswith(OWN):
            if path not in self._pages:
                text = "There are /_skerry/status, /_skerry/healthz, /_skerry/metrics."
                return refused("path_unknown", text)
            if exchange.method not in ("GET", "HEAD"):
                text = "The node's own pages are only read: GET or HEAD."
                return refused("method_unknown", text, allow="GET, HEAD")
            return None if path == HEALTH else self._stranger(exchange, certificate, page=True)
        stranger = self._stranger(exchange, certificate)
        # A host that isn't the node's own may be a route's: then the request is for this route alone.
        if stranger is not None and not (stranger.code == "host_refused" and self._table.names(exchange.host or b"")):
            return stranger
        match = self.resolve(exchange.method, path, exchange.host)
        if isinstance(match, Refusal):
            return match
        if stranger is not None and not match.host:
            return stranger
        if exchange.length > self._body_limit:
            return too_large(self._body_limit)
        caller: Caller | None = exchange.caller
        if caller is not None and (refusal := caller.closed(match.function)) is not None:
            return refusal
        exchange.target = match
        exchange.name = match.function
        exchange.release = self._release.number if self._release is not None else 0
        if self._rules and not exchange.cors and match.function in self._rules:
            exchange.cors = self._rules[match.function].always
        return None

    def run(self, exchange: Exchange, connection: HttpConnection) -> None:
        """Answer a whole request whose turn it is."""
        match: Match | bytes | None = exchange.target
        if not isinstance(match, Match):
            if match is None:
                self._page(exchange.path, connection)
            else:
                connection.answer(204, match, b"")
            return
        pieces, caller, headers = exchange.pieces, exchange.caller, exchange.headers
        request_id = exchange.request_id = exchange.request_id or new_request_id()
        if exchange.auth_type == BEARER:
            headers = [header for header in headers if header[0] != b"authorization"]
        if exchange.traced or self._wanting:
            headers = self._traced(exchange, match.function, headers)
        done = connection.done if caller is None else self._counted(caller, match.function, connection)
        call = exchange.call = Call(
            match.function,
            exchange.method,
            match.path,
            exchange.query,
            headers,
            connection.client,
            pieces or b"",
            done,
            match.script,
            match.route,
            match.params,
            connection.via if caller is None else Via(connection.via.scheme, caller.name, exchange.auth_type),
            request_id,
            match.host,
        )
        if self.tracer is not None or exchange.traced:
            join_trace(self.tracer, exchange, call)
        self.submit(call)

    def _traced(self, exchange: Exchange, function: str, headers: Headers) -> Headers:
        """Return a call's headers without those that differ for each call; or, if the function's manifest asks for
        them, with the call's id."""
        if function not in self._wanting:
            return [header for header in headers if header[0] not in TRACE]
        return [(REQUEST_ID, exchange.request_id), *(header for header in headers if header[0] != REQUEST_ID)]

    def leave(self, exchange: Exchange) -> None:
        """Note that the client of a running request has disconnected."""
        if exchange.call is not None:
            self._pool.leave(exchange.call)

    def _follow(self, release: LocalRelease | None) -> None:
        """Use the routes, and the rules for pages of other origins, of a release that is served now."""
        self._release = release
        functions = release.functions if release is not None else []
        self._table = Table({f.name: f.manifest.route for f in functions if f.manifest.route is not None})
        self._wanting = frozenset(f.name for f in functions if f.manifest.trace_headers)
        self._rules = site_policy.rules({f.name: f.manifest for f in functions})

    def _of_page(self, exchange: Exchange, scheme: bytes) -> Refusal | None:
        """Check a request that a web page may have had the browser send; return why it is refused, if it is.

        If it isn't refused, set `cors`, and for a preflight `target`: the header lines of its answer. This comes before
        the caller is identified: a preflight has no token.
        """
        origin, own = exchange.origin, scheme + (exchange.host or b"")
        if not site_policy.foreign(exchange.site, origin, own) or exchange.path == HEALTH:
            return None
        if exchange.path.startswith(OWN):
            return refused(*site_policy.OWN_PAGES)
        told = dict(exchange.headers)
        wanted = told.get(b"access-control-request-method") if exchange.method == "OPTIONS" else None
        method = wanted.decode("latin-1") if wanted is not None else exchange.method
        match = self.resolve(method, exchange.path, exchange.host)
        if self._release is None and self._pool.hold is Hold.ALL:
            return release_changing("The node is starting: it isn't known yet which pages may call its functions")
        rule = self._rules.get(match.function) if isinstance(match, Match) else None
        asked = PageRequest(
            method,
            origin,
            preflight=wanted is not None,
            mode=told.get(b"sec-fetch-mode", b""),
            destination=told.get(b"sec-fetch-dest", b""),
        )
        denied = site_policy.denied(asked, rule, own)
        if denied is not None:
            return refused(*denied)
        if rule is not None and origin is not None:
            if wanted is None:
                exchange.cors = rule.lines(origin)
            else:
                exchange.target = rule.preflight(origin)
        return None

    def _page(self, path: bytes, connection: HttpConnection) -> None:
        kind, make = self._pages[path]
        try:
            body = make()
        except Exception:
            log.exception("the page %s failed", path.decode())
            connection.done(refused("internal", "The node failed to make this page; its log says why."))
            return
        connection.answer(200, b"content-type: %b\r\n" % kind, body)

    def _counted(self, caller: Caller, function: str, connection: HttpConnection) -> Callable[[Outcome], None]:
        """Return a callback that ends a caller's call: it counts the call and answers it."""

        def done(outcome: Outcome) -> None:
            known = function if function in self._pool.functions else ""
            caller.count(known, name_of(outcome))
            connection.done(outcome)

        return done

    def _stranger(self, exchange: Exchange, certificate: bytes | None, *, page: bool = False) -> Refusal | None:
        """Return why the client may send no requests at all, or none for the node's own pages; None if it may."""
        if self._callers is not None:
            if page and self.token is not None and hmac.compare_digest(_bearer(exchange), self.token):
                return None
            refusal = self._callers.admit(exchange, certificate or b"", _bearer(exchange), page=page)
            if refusal is not None or exchange.auth_type != CERTIFICATE:
                return refusal
            # A browser presents its certificate for other sites' pages, too.
        elif self.token is not None:
            if not hmac.compare_digest(_bearer(exchange), self.token):
                text = "This node asks for its token: send `Authorization: Bearer TOKEN`."
                return refused("token_needed", text)
            exchange.auth_type = BEARER
            return None
        # Otherwise other sites' pages could call functions as the visitor, through a DNS name for this address.
        if not self._own(exchange.host or b""):
            text = (
                f"The Host header is {_shown(exchange.host)}; it must be localhost, 127.0.0.1, one of "
                "SKERRY_EDGE_HOSTS, or for a function's route one of the route's hosts."
            )
            return refused("host_refused", text)
        return None

    def _own(self, host: bytes) -> bool:
        """Return whether a host, with or without a port, is one of the node's."""
        host = host.lower()
        return host in self._hosts or host.rpartition(b":")[0] in self._hosts


def _shown(host: bytes | None) -> str:
    return (host or b"missing")[:100].decode("latin-1")


def _bearer(exchange: Exchange) -> bytes:
    """Return a request's token; empty if it has none."""
    scheme, _, token = (exchange.authorization or b"").partition(b" ")
    return token.strip(b" ") if scheme.lower() == b"bearer" else b""


def join_trace(tracer: CallTracer | None, exchange: Exchange, call: Call) -> None:
    """Give a call its place in its caller's trace, or in a new one; `tracer` is None if no traces are sent."""
    drawn = tracer is not None and tracer.draw()
    if not drawn and not exchange.traced:
        return
    caller = None
    if exchange.traced:
        given = [value for name, value in exchange.headers if name == TRACEPARENT]
        caller = trace_context.parse(given[0]) if len(given) == 1 else None
    began = time.monotonic()
    trace = tracer.begin(caller, began, drawn=drawn) if tracer is not None else None
    if tracer is None or trace is None:
        call.traced = Passed(caller) if caller is not None else None
        return
    start, done, used = time.time_ns(), call.done, tracer
    call.traced, call.timed = trace, True

    def ended(outcome: Outcome) -> None:
        attributes: dict[str, str | int] = {
            "http.request.method": call.method,
            "http.response.status_code": outcome.status,
            "skerry.function": call.name,
            "skerry.release": exchange.release,
            "skerry.request_id": call.request_id.decode(),
        }
        if call.route:
            attributes["http.route"] = call.route
        error = outcome.code if isinstance(outcome, Refusal) else str(outcome.status) if outcome.status >= 500 else ""
        end = start + int((time.monotonic() - began) * 1e9)
        used.end(trace, f"{call.method} {call.route or call.script}", attributes, error, (start, end), call.times)
        done(outcome)

    call.done = ended
