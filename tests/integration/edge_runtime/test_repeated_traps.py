"""A trap on a node: its log says in which function of the module it was, for calls that can change nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from control.protocol.manifest import HttpGrant, Manifest
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.guest_log import fields_of, shown_with
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.ipc import frames
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.request_head import Via
from edge_runtime.ipc.zygote_client import NotBorn
from edge_runtime.telemetry import repeated_traps, ring, search
from edge_runtime.telemetry.repeated_traps import RepeatedTraps
from edge_runtime.telemetry.search import LineFilter
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_call_ends import trapping
from tests.support.deadlines import scaled
from tests.support.edge import BACKGROUND, Node, node, until
from tests.support.moved_clock import MovedClock

HINT = "`skerry-edge call` with the same request says in which function of the module it trapped"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    path = tmp_path_factory.mktemp("traps") / "state"
    path.mkdir(mode=0o700)
    functions: dict[str, Any] = {
        "named": trapping(names=True, trap="unreachable"),
        "nameless": trapping(names=False, trap="(drop (i32.div_u (i32.const 1) (i32.const 0)))"),
        "plugin": (guest("plugin"), {"abi": "extism"}),
        "writer": (trapping(names=True, trap="unreachable"), {"sql": "write"}),
        "asker": (trapping(names=True, trap="unreachable"), {"http": {"hosts": ["example.org"]}}),
    }
    with pytest.MonkeyPatch.context() as patched:
        # The call is made again when nothing else wants the processor, as other tests do.
        patched.setattr(repeated_traps, "LIMIT", BACKGROUND)
        async with node(path) as made:
            await made.release(functions)
            yield made


async def of_call(edge: Node, call: str, count: int) -> list[dict[str, Any]]:
    """What the node has logged of a call, once there is so much."""
    wanted, folder = LineFilter(kinds=("node",), calls=(call,)), edge.state.path / ring.FOLDER
    await until(lambda: len(search.search(folder, wanted).lines) >= count, scaled(BACKGROUND))
    return [orjson.loads(line) for line in search.search(folder, wanted).lines]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("named", "function 2 (take_order)"),
        ("nameless", "function 2"),
        ("plugin/trap", "(trap)"),
    ],
)
async def test_the_log_says_where_a_call_trapped(edge: Node, path: str, place: str) -> None:
    name = path.split("/")[0]
    status, headers, body = await edge.call(path, b"x")
    assert (status, orjson.loads(body)["code"]) == (502, "guest_trap")
    trap, where = await of_call(edge, headers["x-request-id"], 2)
    assert trap["message"].endswith("[guest_trap]")
    assert where["message"].startswith(f"{name} 1 {headers['x-request-id']}: it trapped in function ")
    assert where["message"].endswith(f"{place} of its module")
    assert (where["level"], where["function"], where["release"]) == ("warning", name, 1)


@pytest.mark.parametrize("name", ["writer", "asker"])
async def test_a_call_that_may_change_something_is_not_made_again(
    edge: Node, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.front.processes, "birth", None)
    _, headers, _ = await edge.call(name)
    found = await of_call(edge, headers["x-request-id"], 2)
    assert found[1]["message"] == f"{name} 1 {headers['x-request-id']}: {HINT}"
    assert edge.front.traps._next is None


class Processes:
    """Starts processes that do as they are told; the faults can't be had of real ones."""

    def __init__(self) -> None:
        self.asked: list[frames.Repeat] = []
        self.does: Any = "function 7"
        self.open = 0

    async def birth(self, kind: str, *, background: bool = False) -> Any:
        assert (kind, background) == ("repeater", True)
        if isinstance(self.does, NotBorn):
            raise self.does
        self.open += 1
        return self

    def close(self) -> None:
        self.open -= 1

    async def ask(self, kind: int, order: frames.Repeat, limit: float) -> frames.Frame:
        assert kind == frames.REPEAT
        assert limit >= repeated_traps.LIMIT
        self.asked.append(order)
        if isinstance(self.does, Exception):
            raise self.does
        return frames.Frame(0, frames.REPEATED, b"", frames.encode_json({"place": self.does}))


def note(
    made: RepeatedTraps, name: str, body: bytes | list[bytes | bytearray] = b"", version: int = 1, **grants: Any
) -> None:
    call = trapped(name, body, version, **grants)
    made.note(call, shown_with(f"{name} {version}", call), fields_of(call))


def trapped(name: str, body: bytes | list[bytes | bytearray] = b"", version: int = 1, **manifest: Any) -> Call:
    made = Call(name, "POST", "", b"", [], "127.0.0.1", body, print, via=Via("http", "", ""), request_id=b"id-1")
    local = LocalFunction(name, version, "0" * 64, Manifest(**manifest), "")
    made.served = ServedFunction(0, local, Tally(name), Breaker(), writes=False, limit=1.0, release=1)
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def traps() -> AsyncIterator[tuple[RepeatedTraps, Processes]]:
    processes = Processes()
    made = RepeatedTraps(processes, lambda functions: {f.name: {"KEY": "value"} for f in functions})
    running = asyncio.ensure_future(made.run())
    yield made, processes
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert processes.open == 0


@pytest.mark.parametrize(
    "fault",
    [NotBorn("no room"), frames.ChildGone("it ended"), TimeoutError(), OSError("a mistake"), "x" * 1000, 5],
)
async def test_whatever_becomes_of_the_process_the_next_trap_is_looked_into(
    traps: tuple[RepeatedTraps, Processes], fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made, processes = traps
    processes.does = fault
    note(made, "one")
    await until(lambda: made._next is None)
    processes.does = "function 7 (x)"
    note(made, "two", [b"a", bytearray(b"b")])
    await until(lambda: made._next is None)
    assert "two 1 id-1: it trapped in function 7 (x) of its module" in caplog.text
    assert "one 1 id-1: it trapped" not in caplog.text
    assert (processes.asked[-1].body, processes.asked[-1].secrets) == (b"ab", {"KEY": "value"})
    assert "value" not in repr(processes.asked[-1])


async def test_traps_are_looked_into_now_and_then(traps: tuple[RepeatedTraps, Processes], clock: MovedClock) -> None:
    made, processes = traps
    clock.stand()
    for name, version in (("one", 1), ("one", 1), ("one", 2), ("one", 1), ("two", 1)):
        note(made, name, version=version)
        await until(lambda: made._next is None)
    assert [(order.function.name, order.function.version) for order in processes.asked] == [
        ("one", 1),
        ("one", 2),
        ("two", 1),
    ]
    await clock.move(repeated_traps.AGAIN - 1)
    note(made, "one")
    assert made._next is None
    await clock.move(1)
    note(made, "one")
    # While one is looked into, others aren't.
    note(made, "three")
    await until(lambda: made._next is None)
    assert processes.asked[-1].function.name == "one"
    assert len(made._looked) == 1


async def test_what_is_not_made_again_is_said(
    traps: tuple[RepeatedTraps, Processes], caplog: pytest.LogCaptureFixture
) -> None:
    made, processes = traps
    caplog.set_level(logging.WARNING)
    grants: list[dict[str, Any]] = [{"sql": "read"}, {"sql": "write"}, {"http": HttpGrant(hosts=["example.org"])}]
    for version, grant in enumerate(grants):
        note(made, "granted", version=version, **grant)
    note(made, "large", b"x" * (repeated_traps.BODY + 1))
    assert caplog.text.count(HINT) == 4
    assert processes.asked == []
