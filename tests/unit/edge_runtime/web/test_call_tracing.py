"""A call's place in a trace, as its request and the draw decide."""

import pytest

from control.protocol.trace_context import Place
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import Answer
from edge_runtime.telemetry.call_traces import CallTrace, CallTracer, Passed
from edge_runtime.telemetry.spans import TraceSpan
from edge_runtime.web.app import join_trace
from edge_runtime.web.parser import Exchange

CALLER = Place(b"t" * 16, b"c" * 8, sampled=False)


def joined(share: float | None, caller: Place | None = None, made: list[TraceSpan] | None = None) -> Call:
    """A call of a node that traces this share, or sends no traces, once its trace is known."""
    exchange = Exchange("POST", b"/functions/a", b"", [])
    if caller is not None:
        exchange.headers.append((b"traceparent", caller.header().encode()))
        exchange.traced = True
    call = Call("a", "POST", "", b"", exchange.headers, "", b"", lambda outcome: None)
    put = (made if made is not None else []).append
    join_trace(None if share is None else CallTracer(share, put), exchange, call)
    return call


@pytest.mark.parametrize("share", [None, 0.0])
def test_a_call_that_is_not_drawn_has_no_trace(share: float | None) -> None:
    call = joined(share)
    assert call.traced is None
    assert not call.timed


@pytest.mark.parametrize("share", [None, 0.0])
def test_the_callers_place_goes_on_with_a_call_that_is_not_traced(share: float | None) -> None:
    call = joined(share, CALLER)
    assert isinstance(call.traced, Passed)
    assert call.traced.request() == CALLER.header()
    assert not call.timed


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_call_is_traced_where_its_caller_is_or_it_was_drawn(share: float) -> None:
    call = joined(share, CALLER._replace(sampled=share == 0.0))
    assert isinstance(call.traced, CallTrace)
    assert (call.traced.at.trace, call.traced.parent) == (CALLER.trace, CALLER.span)
    assert call.timed


def test_a_call_that_is_drawn_has_a_trace_of_its_own_and_a_span_at_its_end() -> None:
    made: list[TraceSpan] = []
    call = joined(1.0, made=made)
    assert isinstance(call.traced, CallTrace)
    assert call.traced.parent == b""
    assert call.timed
    assert made == []
    call.end(Answer(201, b"", b"", 1))
    (span,) = made
    assert (span.at, span.name, span.error) == (call.traced.at, "POST /functions/a", "")
    assert span.attributes["http.response.status_code"] == 201
