"""The alerts about the calls of functions, which fail, are slow or end their workers; and the dashboard, of which each
panel shows something where functions are called."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator

import orjson
import pytest

from tests.guests.build import guest
from tests.support.cluster import SLOW, WRITE
from tests.support.deadlines import scaled
from tests.support.prometheus import ALERTS
from tests.support.watched import BAD, LIMIT, Watched, repeating

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_calls_fail(watched: Watched) -> None:
    await watched.serve(guest("trap"))
    async with repeating(lambda: watched.call(BAD)):
        await watched.fires("SkerryEdgeCallsFail", "SkerryFunctionFails")
        await watched.serve(guest("echo"))
        await watched.ends("SkerryEdgeCallsFail", "SkerryFunctionFails")


async def test_calls_are_slow(watched: Watched) -> None:
    """Control is told of them soon, since something is released just before."""
    async with repeating(lambda: watched.call(f"{SLOW}?ms=1500")):
        await watched.serve(guest("echo"))
        await watched.fires("SkerryEdgeCallsSlow", "SkerryFunctionSlow")
    async with repeating(lambda: watched.call(f"{SLOW}?ms=1")):
        await watched.serve(guest("echo"))
        await watched.ends("SkerryEdgeCallsSlow", "SkerryFunctionSlow")


async def test_a_function_kills_its_workers(watched: Watched) -> None:
    await watched.serve(guest("loop"), time_limit_ms=100)
    async with repeating(lambda: watched.call(BAD)):
        await watched.fires("SkerryEdgeCircuitOpen", "SkerryEdgeWorkersDie")
        await watched.serve(guest("echo"))
        await watched.ends("SkerryEdgeCircuitOpen", "SkerryEdgeWorkersDie")


async def test_a_function_fails_that_starts_by_itself(watched: Watched) -> None:
    made = watched.cluster
    number = await made.push("ticks", guest("tick"), on_release=True, config={"STATUS": "404"})
    release = await made.call("POST", "/v1/releases", {"functions": {"ticks": number}, "now": True})
    await made.converged(release["number"])

    async def failed() -> bool:
        functions = (await made.status() or {}).get("functions", [])
        return any(line["last_status"] for function in functions for line in function["schedule"])

    await made.until("the function was called after its release", failed, limit=scaled(LIMIT))
    await watched.tell_now()
    await watched.fires("SkerrySchedulesFail")
    release = await made.call("POST", "/v1/releases", {"remove": ["ticks"], "now": True})
    await made.converged(release["number"])
    await watched.tell_now()
    await watched.ends("SkerrySchedulesFail")


def panels() -> Iterator[tuple[str, str]]:
    """Title and query of each panel of the dashboard, for all nodes and functions."""
    for panel in orjson.loads((ALERTS / "dashboard.json").read_bytes())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], re.sub(r"\$\w+", ".*", query)


async def test_each_panel_of_the_dashboard_shows_something(watched: Watched) -> None:
    calls = itertools.cycle((f"{SLOW}?ms=1", f"{WRITE}?status=500", "none"))
    # What a fleet has none of where all is well, or that this node needn't have.
    none = "denied|auth_failures|failing_nodes|worker_deaths|edge_certificate|edge_credential"
    empty = [(title, query) for title, query in panels() if not re.search(none, query)]
    async with repeating(lambda: watched.call(next(calls))):
        await watched.tell_now()
        end = time.monotonic() + scaled(LIMIT)
        while empty and time.monotonic() < end:
            await asyncio.sleep(1)
            empty = [(title, query) for title, query in empty if not await watched.prometheus.query(query)]
    assert empty == []
    for _, query in panels():
        await watched.prometheus.query(query)
