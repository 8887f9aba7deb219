"""Calls as spans: a real node, its function's SQL and HTTP, and a collector that reads OTLP."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.guests.build import guest
from tests.support.edge import Node, node, until
from tests.support.otlp_receiver import Collector, attributes, collector

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{CALLER}"
INSERT = b"""{"sql":"INSERT INTO notes (text) VALUES ('secret words')"}"""


class Site:
    """Where a function's HTTP requests go."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str | None] = []
        """The `traceparent` of each request."""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers.get("traceparent"))
        return web.Response(text="x")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Site]:
    made, app = Site(), web.Application()
    app.router.add_route("*", "/{rest:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def got() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory, site: Site, got: Collector) -> AsyncIterator[Node]:
    """A node that traces no call by itself."""
    guests = {
        "sql": (guest("sql"), {"sql": "write", "route": {"path": "/notes/{id}"}}),
        "trap": guest("trap"),
        "fetch": (guest("fetch"), {"http": {"hosts": [site.url], "time_limit_ms": 5000}}),
        "echo": guest("echo"),
    }
    settings = {"otlp_url": got.url, "trace_share": 0.0}
    async with node(tmp_path_factory.mktemp("node") / "state", **settings) as made:
        await made.release(guests, ["CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"])
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def silent(tmp_path_factory: pytest.TempPathFactory, site: Site) -> AsyncIterator[Node]:
    """A node that sends no traces."""
    guests = {"fetch": (guest("fetch"), {"http": {"hosts": [site.url], "time_limit_ms": 5000}})}
    async with node(tmp_path_factory.mktemp("node") / "state") as made:
        await made.release(guests)
        yield made


async def spans_of(got: Collector, root: str, last: str = "guest") -> dict[str, Span]:
    """The spans of the trace that has this root, by name; `last` is that of the one that is made last."""
    span = (await asyncio.to_thread(got.wait, root))[-1]

    def found() -> dict[str, Span]:
        return {other.name: other for other in got.spans() if other.trace_id == span.trace_id}

    # The root is made first, and may be sent before the others are made.
    await until(lambda: last in found())
    return found()


async def test_a_call_within_its_callers_trace(edge: Node, got: Collector) -> None:
    headers = {"traceparent": f"{GIVEN}-01", "x-request-id": "order-7"}
    async with edge.http.post("/notes/7?token=secret", data=INSERT, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
    spans = await spans_of(got, "POST /notes/{id}", "COMMIT")
    root, guest_span = spans["POST /notes/{id}"], spans["guest"]
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.kind) == (TRACE, CALLER, Span.SPAN_KIND_SERVER)
    told = attributes(root)
    assert {"skerry.function": "sql", "skerry.request_id": "order-7", "http.response.status_code": 200}.items() <= (
        told.items()
    )
    assert {spans[name].parent_span_id for name in ("queue", "guest")} == {root.span_id}
    steps = {name: spans[name] for name in ("lock wait", "INSERT", "COMMIT")}
    for span in steps.values():
        assert span.parent_span_id == guest_span.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    assert "secret" not in str(got.spans())
    assert attributes(steps["INSERT"])["db.query.text"].startswith("INSERT INTO notes")


async def test_the_trace_goes_on_with_outgoing_http(edge: Node, got: Collector, site: Site) -> None:
    site.asked.clear()
    trace = "1" * 32
    body = orjson.dumps({"url": f"{site.url}/a?token=hidden"})
    status, _, _ = await edge.call("fetch", body, headers={"traceparent": f"00-{trace}-{CALLER}-01"})
    assert status == 200
    spans = await spans_of(got, "POST /functions/fetch", "HTTP")
    assert site.asked == [f"00-{trace}-{spans['HTTP'].span_id.hex()}-01"]
    assert attributes(spans["HTTP"]) == {"server.address": "127.0.0.1"}
    assert "hidden" not in str(spans)


async def test_a_failed_call_says_so(edge: Node, got: Collector) -> None:
    await edge.call("trap", headers={"traceparent": f"00-{'2' * 32}-{CALLER}-01"})
    spans = await spans_of(got, "POST /functions/trap")
    root = spans.pop("POST /functions/trap")
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert attributes(root)["error.type"] == "guest_trap"
    assert sorted(spans) == ["guest", "queue"]


async def test_a_call_that_is_granted_nothing_has_its_queue_and_its_guest(edge: Node, got: Collector) -> None:
    await edge.call("echo", b"x", headers={"traceparent": f"00-{'3' * 32}-{CALLER}-01"})
    spans = await spans_of(got, "POST /functions/echo")
    assert sorted(spans) == ["POST /functions/echo", "guest", "queue"]
    assert spans["guest"].end_time_unix_nano > spans["guest"].start_time_unix_nano


@pytest.mark.parametrize("flag", ["00", ""])
async def test_calls_that_nobody_wants_traced_have_no_spans_but_their_place_goes_on(
    edge: Node, got: Collector, site: Site, flag: str
) -> None:
    site.asked.clear()
    before, echoes = len(got.spans("POST /functions/fetch")), len(got.spans("POST /functions/echo"))
    headers = {"traceparent": f"{GIVEN}-{flag}"} if flag else {}
    body = orjson.dumps({"url": f"{site.url}/a"})
    await edge.call("fetch", body, headers=headers)
    assert site.asked == [f"{GIVEN}-{flag}" if flag else None]
    # Spans are sent in their order: those of a later call would come after those of this one.
    await edge.call("echo", b"x", headers={"traceparent": f"{GIVEN}-01"})
    await asyncio.to_thread(got.wait, "POST /functions/echo", 1 + echoes)
    assert len(got.spans("POST /functions/fetch")) == before


async def test_a_node_without_a_collector_passes_the_place_on(silent: Node, site: Site) -> None:
    site.asked.clear()
    body = orjson.dumps({"url": f"{site.url}/a"})
    for header in (f"{GIVEN}-01", "nonsense"):
        await silent.call("fetch", body, headers={"traceparent": header})
    assert site.asked == [f"{GIVEN}-01", None]
