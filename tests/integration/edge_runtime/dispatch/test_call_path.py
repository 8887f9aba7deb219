"""A call goes one way through the front: at most five modules, and at most two returns to one that it has passed."""

from pathlib import Path

from tests.guests.build import guest
from tests.support.built_parts import needs_python
from tests.support.call_path import Way, recording
from tests.support.edge import Node, node, until

BEGINS = ("HttpConnection._advance", "WorkerLink.receive")
"""A whole request becomes a call; and the worker's words about it come in. What comes before isn't the call's way: how
bytes become an `Exchange` (`web.parser`) or a frame (`dispatch.worker_socket`), and who may ask (`EdgeApp.admit`)."""
GOING_IN = ["web.connection", "web.app", "dispatch.pool", "dispatch.worker_link"]


async def calm(edge: Node, *called: str) -> None:
    """Until the worker and the spare one are there and have loaded what they must, the spare one those functions that
    were `called`, too: nothing else comes in between."""
    links = edge.front.pool.links

    def are_ready() -> bool:
        fit = len(links) == 2 and all(k.usable and not k.jobs and k.ordered == k.serials for k in links)
        return fit and all(k.preloaded.issuperset(called) for k in links if k.spare)

    await until(are_ready)


def stays(way: Way) -> list[str]:
    """The modules in their order, but the log's, where another test has set it up: a line is written by the way."""
    return [name for stay in way.stays if (name := stay.removeprefix("edge_runtime.")) not in ("logs", "redaction")]


@needs_python
async def test_a_call_that_is_answered(tmp_path: Path) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        assert (await edge.call("echo", b"first"))[2] == b"first"
        await calm(edge, "echo")
        with recording("edge_runtime", begins=BEGINS) as way:
            assert (await edge.call("echo", b"second"))[2] == b"second"
        # The pool comes first, so that the next call goes out in the same write; the counts are kept by a leaf.
        assert stays(way) == [*GOING_IN, "dispatch.pool", "dispatch.call", "web.connection"], way
        assert len(way.modules) <= 5, way
        assert way.returns <= 2, way


@needs_python
async def test_a_call_whose_worker_is_ended(tmp_path: Path) -> None:
    """The watchdog has ended it: the pool requeues what waits and hands over the call that ran, whose way goes on."""
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"loop": (guest("loop"), {"time_limit_ms": 50})})
        await calm(edge)
        # Not what the next worker says meanwhile.
        with recording("edge_runtime", begins=("HttpConnection._advance", "WorkerLink._lost")) as way:
            assert await edge.problem("loop") == (504, "time_limit")
        # Behind the call's end comes what a new worker says.
        # The log's handler, which keeps the line about the worker, isn't on the way.
        places = [place for place in stays(way) if place != "telemetry.node_log"]
        passed = places[: places.index("web.connection", 1) + 1]
        assert passed[:6] == [*GOING_IN, "dispatch.pool", "dispatch.worker_deaths"], way
        assert passed[6:9] == ["dispatch.outcomes", "dispatch.served_functions", "dispatch.breaker"], way
        assert passed.count("dispatch.worker_link") == 1, way
        assert len(passed) - len(set(passed)) <= 2, way
