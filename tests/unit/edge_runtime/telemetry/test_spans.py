"""Places in traces, which calls are traced, and the spans that a call becomes."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.protocol import trace_context
from control.protocol.trace_context import Place
from edge_runtime.ipc.call_times import COMMIT, HTTP, LOCK, SQL, TEXT, CallTimes, Step
from edge_runtime.redaction import redact
from edge_runtime.telemetry.call_traces import BURST, CallTrace, CallTracer
from edge_runtime.telemetry.spans import CLIENT, SERVER, TraceSpan

CALLER = Place(b"t" * 16, b"c" * 8)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.booleans())
def test_a_place_is_read_as_it_was_written(trace: bytes, span: bytes, sampled: bool) -> None:
    place = Place(trace, span, sampled=sampled)
    wanted = place if any(trace) and any(span) else None
    assert trace_context.parse(place.header().encode()) == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01",
        b"00-" + b"1" * 32 + b"-" + b"0" * 16 + b"-01",
        b"00-" + b"A" * 32 + b"-" + b"1" * 16 + b"-01",
        b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01-more",
        b"ff-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01",
        b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01\n",
    ],
)
def test_what_is_no_place_begins_a_new_trace(wrong: bytes) -> None:
    assert trace_context.parse(wrong) is None


def test_a_later_version_may_have_more_behind_what_is_known() -> None:
    later = b"01-" + b"1" * 32 + b"-" + b"2" * 16 + b"-00-more"
    assert trace_context.parse(later) == Place(b"\x11" * 16, b"\x22" * 8, sampled=False)


@given(st.binary(max_size=80))
def test_any_header_is_judged_without_an_error(header: bytes) -> None:
    trace_context.parse(header)


def test_callers_can_have_their_calls_traced_as_far_as_the_bound_goes() -> None:
    tracer = CallTracer(0.0, lambda span: None)
    assert tracer.begin(None, 0.0, drawn=False) is None
    assert tracer.begin(CALLER._replace(sampled=False), 0.0, drawn=False) is None
    traced = [tracer.begin(CALLER, 0.0, drawn=False) for _ in range(BURST + 5)]
    assert [trace is not None for trace in traced] == [True] * BURST + [False] * 5
    assert traced[0] is not None
    assert (traced[0].at.trace, traced[0].parent) == (CALLER.trace, CALLER.span)
    assert tracer.begin(CALLER, 0.0, drawn=True) is not None
    assert tracer.begin(CALLER, 1.0, drawn=False) is not None


def test_calls_that_are_drawn_take_nothing_of_what_callers_may_have_traced() -> None:
    tracer = CallTracer(0.0, lambda span: None)
    for _ in range(3 * BURST):
        assert tracer.begin(CALLER, 0.0, drawn=True) is not None
    assert tracer.begin(CALLER, 0.0, drawn=False) is not None


def draws(share: float, count: int) -> list[bool]:
    tracer = CallTracer(share, lambda span: None)
    return [tracer.draw() for _ in range(count)]


@pytest.mark.parametrize("share", [0.0, -0.0, 5e-324, 1e-18])
def test_nothing_is_drawn_where_the_share_is_none_or_tiny(share: float) -> None:
    assert not any(draws(share, 10_000))


def test_everything_is_drawn_where_that_is_the_share() -> None:
    assert all(draws(1.0, 10_000))


@settings(max_examples=20)
@given(st.floats(0.05, 0.95), st.integers())
def test_each_call_is_drawn_with_the_share_whatever_those_before_were(share: float, seed: int) -> None:
    """How many were drawn: of all calls, of those that follow one that was drawn, and of those that come a few calls
    behind one. Each is what so many independent draws give, within 6 standard deviations."""
    random.seed(seed)
    count = 40_000
    found = draws(share, count)
    for distance in (0, 1, 2, 5):
        of = [now for now, before in zip(found[distance:], found, strict=False) if before] if distance else found
        assert abs(sum(of) - share * len(of)) <= 6 * math.sqrt(share * (1 - share) * len(of)) + 1, distance


@given(st.integers())
def test_the_first_call_is_drawn_as_others_are(seed: int) -> None:
    random.seed(seed)
    found = sum(draws(0.25, 1)[0] for _ in range(2000))
    assert abs(found - 500) <= 6 * math.sqrt(2000 * 0.25 * 0.75)


def test_every_trace_is_one_of_its_own() -> None:
    tracer = CallTracer(1.0, lambda span: None)
    one, other = tracer.begin(None, 0.0, drawn=True), tracer.begin(None, 0.0, drawn=True)
    assert one is not None
    assert other is not None
    assert one.at.trace != other.at.trace
    assert one.parent == b""


def test_a_calls_steps_are_spans_below_its_time_in_the_worker() -> None:
    made: list[TraceSpan] = []
    tracer = CallTracer(1.0, made.append)
    trace = tracer.begin(CALLER, 0.0, drawn=True)
    assert trace is not None
    request = trace.request()
    steps = [Step(LOCK, 0, 1000, 0), Step(SQL, 1000, 2000, 1), Step(HTTP, 4000, 1000, 2), Step(COMMIT, 9000, 1000, 0)]
    told = CallTimes(10_000, steps, [], ["", "INSERT INTO a VALUES (?)", "example.org"])
    start, end = 1_000_000_000, 1_030_000_000
    tracer.end(trace, "POST /functions/a", {"skerry.function": "a"}, "", (start, end), told)
    by_name = {span.name: span for span in made}
    root, queue, guest = by_name["POST /functions/a"], by_name["queue"], by_name["guest"]
    assert (root.parent, root.kind, root.start, root.end) == (CALLER.span, SERVER, start, end)
    assert (queue.start, queue.end, queue.parent) == (start, end - 10_000_000, root.at.span)
    assert (guest.start, guest.end, guest.parent) == (end - 10_000_000, end, root.at.span)
    assert {by_name[name].parent for name in ("lock wait", "INSERT", "HTTP", "COMMIT")} == {guest.at.span}
    assert {span.at.trace for span in made} == {CALLER.trace}
    insert = by_name["INSERT"]
    assert (insert.start - guest.start, insert.end - insert.start, insert.kind) == (1_000_000, 2_000_000, CLIENT)
    assert insert.attributes["db.query.text"] == "INSERT INTO a VALUES (?)"
    assert by_name["HTTP"].at.header() == request
    assert by_name["HTTP"].attributes == {"server.address": "example.org"}


def test_no_value_of_a_secret_is_in_a_span() -> None:
    key = "sk-0123456789abcdef"
    redact.know({"a": {"API_KEY": key}})
    cut = f"SELECT {'x, ' * 100}"[: TEXT - 8] + key[:8]
    texts = [f'SELECT "{key}"', f"{key}.example.org", cut]
    made: list[TraceSpan] = []
    tracer = CallTracer(1.0, made.append)
    trace = tracer.begin(None, 0.0, drawn=True)
    assert trace is not None
    told = CallTimes(10, [Step(SQL, 0, 1, 0), Step(HTTP, 0, 1, 1), Step(SQL, 0, 1, 2)], [], texts)
    tracer.end(trace, "GET /", {}, "", (0, 10_000), told)
    shown = [span.attributes.get("db.query.text") or span.attributes.get("server.address") for span in made[3:]]
    assert shown == ['SELECT "[secret API_KEY]"', "[secret API_KEY].example.org", cut[:-8] + "[secret API_KEY]"]


def test_spans_of_absurd_times_lie_within_the_call() -> None:
    made: list[TraceSpan] = []
    tracer = CallTracer(1.0, made.append)
    trace = tracer.begin(None, 0.0, drawn=True)
    assert isinstance(trace, CallTrace)
    told = CallTimes(2**40, [Step(SQL, 2**40, 2**40, 0)], [], [""])
    tracer.end(trace, "GET /", {}, "guest_trap", (10, 20), told)
    assert all(10 <= span.start <= span.end <= 20 for span in made)
    assert made[0].error == "guest_trap"
