"""The front is killed by SIGKILL at each step of a call that a function begins by itself: its effect is there once.

How workers are killed there: `tests/integration/edge_runtime/schedules/test_scheduler.py`.
"""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import node
from tests.support.edge_process import FrontProcess, front_process
from tests.support.programs import Faults

KILLS = int(os.environ.get("SKERRY_TEST_KILLS", "5"))
TABLES = ["CREATE TABLE ran (event TEXT, at TEXT, cron TEXT)"]
POINTS = ("edge.call.commit.before", "edge.call.commit.after", "edge.ticks.before")
CALLED: dict[str, Any] = {"sql": "write", "on_release": True, "config": {"SQL": "1", "SLEEP": "50"}}


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    made = Faults(tmp_path / "faults")
    monkeypatch.setenv("SKERRY_FAULTS", str(made.folder))
    return made


async def prepared(state: Path) -> None:
    """Make a node whose release has a call to make that hasn't ended."""
    async with node(state) as edge:
        edge.front.scheduler.most = 0
        await edge.release({"f": (guest("tick"), CALLED), "q": (guest("sql"), {"sql": "read"})}, TABLES)


async def settled(front: FrontProcess) -> dict[str, Any]:
    """What the status says of the call once it has ended."""
    async with deadline(60):
        while True:
            lines = next(f for f in (await front.status())["functions"] if f["name"] == "f")["schedule"]
            if lines and lines[0]["last_status"] is not None and lines[0]["next_run"] is None:
                return dict(lines[0])
            await asyncio.sleep(0.05)


async def ran(front: FrontProcess) -> int:
    status, body = await front.call("q", b'{"sql":"SELECT count(*) FROM ran"}')
    assert status == 200, body
    return int(orjson.loads(body)["rows"][0][0])


@pytest.mark.parametrize("point", POINTS)
async def test_the_front_is_killed_at_each_step(tmp_path: Path, faults: Faults, point: str) -> None:
    await prepared(tmp_path / "state")
    faults.arm(point, "hold")
    async with front_process(tmp_path / "state") as front:
        await faults.reached(point)
        os.kill(front.pid, signal.SIGKILL)
    (faults.folder / f"{point}.held").unlink(missing_ok=True)
    async with front_process(tmp_path / "state") as front:
        assert (await settled(front))["last_status"] == "ok"
        assert await ran(front) == 1
    async with front_process(tmp_path / "state") as front:
        assert (await settled(front))["last_status"] == "ok"
        assert await ran(front) == 1


async def test_the_front_is_killed_at_any_moment(tmp_path: Path) -> None:
    await prepared(tmp_path / "state")
    seed = os.urandom(8).hex()
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(KILLS):
        async with front_process(tmp_path / "state") as front:
            await asyncio.sleep(draw.uniform(0, 0.25))
            os.kill(front.pid, signal.SIGKILL)
    async with front_process(tmp_path / "state") as front:
        assert (await settled(front))["last_status"] == "ok"
        assert await ran(front) == 1
