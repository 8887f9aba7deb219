"""Traces of requests, statements and syncs by OpenTelemetry, sent to a collector if SKERRY_OTLP_URL is set (ADR 47).

A trace is one tree of spans across processes. Polls aren't traced: they are most of a replica's work. OpenTelemetry's
SDK is imported only if traces are sent. A separate thread sends them; what a collector doesn't take is dropped.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from starlette.types import Scope

from control.protocol import trace_context
from control.protocol.trace_context import Place
from control.settings import ControlSettings, ControlSettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

LAST_SEND: Final = 2.0
"""Seconds for sending the remaining spans when the replica stops."""

_SYNCS: Final = "/v1/syncs/"
NOTHING: AbstractContextManager[None] = nullcontext()
"""Stands in for a span."""


class _Traced:
    """A running request that is traced: what the spans of its statements are made with, until it ends."""

    __slots__ = ("span", "tracer")

    def __init__(self, tracer: "Tracer", span: "Span") -> None:
        self.tracer = tracer
        self.span = span


TRACED: ContextVar[_Traced | None] = ContextVar("traced", default=None)
"""The running request, if it is traced."""


class Tracing:
    """Makes the spans of one replica, and sends them."""

    def __init__(self, settings: ControlSettings, instance: str) -> None:
        """Trace as `instance`, the replica's name. Raises: ControlSettingsError, when the file of headers is wrong."""
        from control.otlp import Spans

        certificate = str(settings.otlp_ca) if settings.otlp_ca is not None else None
        self._spans = Spans(settings.otlp_url, certificate, read_headers(settings.otlp_headers_file), instance)
        self._tracer = self._spans.tracer
        self._share = settings.trace_share

    @contextmanager
    def request(self, scope: Scope, status: Callable[[], int]) -> Iterator[None]:
        """Trace a request if it should be traced: statements within the block become its child spans.

        `status` returns the status of the answer at the block's end; 0 if there was none.
        """
        parent = _parent(scope)
        if not self._is_traced(scope, parent):
            yield
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        span = self._tracer.start_span(scope["method"], _context(parent), SpanKind.SERVER, attributes)
        span.set_attribute("skerry.request_id", scope["request_id"].decode())
        token = TRACED.set(_Traced(self._tracer, span))
        try:
            yield
        finally:
            TRACED.reset(token)
            route, answered = getattr(scope.get("endpoint"), "pattern", ""), status()
            if route:
                span.set_attribute("http.route", route)
                span.update_name(f"{scope['method']} {route}")
            if answered:
                span.set_attribute("http.response.status_code", answered)
            if not answered or answered >= 500:
                span.set_attribute("error.type", str(answered or "none"))
                span.set_status(Status(StatusCode.ERROR))
            span.end()

    def is_sync_traced(self, sync_id: str) -> bool:
        """Return whether this sync is traced if its release is; all replicas agree."""
        return UUID(sync_id).int >> 96 < self._share * 2**32

    def sync_parent(self, release: str, sync_id: str) -> str:
        """Return the `traceparent` that a node gets with a sync's plan; '' if it isn't traced.

        `release` is the `traceparent` of the request that made the release, or ''.
        """
        parent = trace_context.parse(release.encode())
        if parent is None or not self.is_sync_traced(sync_id):
            return ""
        return Place(parent.trace, span_of_sync(sync_id).to_bytes(8)).header()

    def sync_ended(self, sync_id: str, parent: str, times: tuple[datetime, datetime], error: str, **of: str) -> None:
        """Make the span of a finished sync, with its start and end, as a child of the request that made its release.

        `parent` is that request's `traceparent`; `error` is the sync's code, or ''; `of` are further attributes.
        """
        from opentelemetry.trace import Status, StatusCode

        self._spans.ids.next_span = span_of_sync(sync_id)
        context = _context(trace_context.parse(parent.encode()))
        attributes = {f"skerry.{name}": value for name, value in of.items()}
        span = self._tracer.start_span("sync", context, attributes=attributes, start_time=_nanoseconds(times[0]))
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_nanoseconds(times[1]))

    async def close(self) -> None:
        """Send the remaining spans, for at most `LAST_SEND` seconds."""
        await asyncio.to_thread(self._spans.close, LAST_SEND)

    def _is_traced(self, scope: Scope, parent: Place | None) -> bool:
        """Decide by control's own share of requests: what callers ask for costs them nothing, but the collector a lot.

        A release is always traced, since its syncs are part of its trace; a node's reports about a sync are traced if
        the sync is.
        """
        path: str = scope["path"]
        if path.startswith(_SYNCS) and scope["method"] == "PUT":
            try:
                sync_id = str(UUID(path.removeprefix(_SYNCS)))
            except ValueError:
                return False
            known = parent is not None and parent.sampled and parent.span == span_of_sync(sync_id).to_bytes(8)
            return known and self.is_sync_traced(sync_id)
        return (path == "/v1/releases" and scope["method"] == "POST") or random.random() < self._share  # noqa: S311


def statement(name: str, text: str) -> AbstractContextManager[object]:
    """Make a block a span of the running request, if that is traced. `text` is SQL, without values."""
    traced = TRACED.get()
    # A task that a request started may outlive it.
    if traced is None or not traced.span.is_recording():
        return NOTHING
    return _statement(traced, name, text)


def current() -> str:
    """Return the `traceparent` of the running request; '' if it isn't traced."""
    traced = TRACED.get()
    if traced is None:
        return ""
    at = traced.span.get_span_context()
    return Place(at.trace_id.to_bytes(16), at.span_id.to_bytes(8)).header()


def span_of_sync(sync_id: str) -> int:
    """Return the id of a sync's span, derived from the sync's id: whoever knows that can make child spans."""
    return UUID(sync_id).int & (2**64 - 1) or 1


def read_headers(path: Path | None) -> dict[str, str]:
    """Read the file of headers for the collector, one `NAME: VALUE` per line.

    Raises: ControlSettingsError, when it is wrong; the message contains no value.
    """
    if path is None:
        return {}
    try:
        return trace_context.collector_headers(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ControlSettingsError(f"SKERRY_OTLP_HEADERS_FILE: {path} can't be read: {type(error).__name__}") from None
    except ValueError as error:
        raise ControlSettingsError(f"SKERRY_OTLP_HEADERS_FILE: {path}: {error}") from None


@contextmanager
def _statement(traced: _Traced, name: str, text: str) -> Iterator[None]:
    from opentelemetry.trace import SpanKind, set_span_in_context

    attributes = {"db.system.name": "postgresql", **({"db.query.text": text} if text else {})}
    span = traced.tracer.start_span(name, set_span_in_context(traced.span), SpanKind.CLIENT, attributes)
    try:
        yield
    except Exception as error:
        span.set_attribute("error.type", getattr(error, "sqlstate", None) or type(error).__name__)
        raise
    finally:
        span.end()


def _parent(scope: Scope) -> Place | None:
    found = [value for name, value in scope["headers"] if name == b"traceparent"]
    return trace_context.parse(found[0]) if len(found) == 1 else None


def _context(parent: Place | None) -> "Context":
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if parent is None:
        return Context()
    trace, span = int.from_bytes(parent.trace), int.from_bytes(parent.span)
    context = SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(context), Context())


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e9)
