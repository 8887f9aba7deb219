"""The agent and a rehearsal, with the real control: it is taken up, tried beside everything else, told, given up."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from control.protocol import wire
from edge_runtime.aot_cache import key
from edge_runtime.cli.status import render
from edge_runtime.state import REHEARSAL
from edge_runtime.sync.control_client import ControlClient, NoAnswer
from edge_runtime.wasmedge import BEST, QUICK
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.agents import Control, Edge, edge, joined
from tests.support.deadlines import deadline
from tests.support.moved_clock import MovedClock
from tests.support.node_process import NodeProcess
from tests.support.programs import Faults
from tests.support.releases import READ, SCHEMA, answers, artifacts, first_release, push, sha

pytestmark = pytest.mark.never_retry

TABLE = f"{SCHEMA} CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER)"
STRICT = "CREATE TABLE strict (n INTEGER NOT NULL); INSERT INTO strict SELECT n FROM items"


async def rehearse(control: Control, number: int, *sqls: str) -> Any:
    """Make a release that is only rehearsed, of the function's version of this number and these changes."""
    for at, sql in enumerate(sqls):
        await control.call("POST", "schema-changes", {"name": f"of {number} {at}", "sql": sql})
    pushed = await control.push("hello", version(number), READ)
    return await control.release(functions={"hello": pushed}, rehearsal_only=True)


async def found(control: Control, number: int) -> Any:
    """What the node has told of the rehearsal of a release."""
    async with deadline(60):
        while True:
            (item,) = (await control.call("GET", f"rollouts/default/{number}/rehearsal"))["items"]
            if item["told_at"] is not None:
                return item
            await asyncio.sleep(0.05)


@pytest.fixture
async def served(node: Edge, control: Control) -> Edge:
    """A node at release 1, which has the table."""
    await control.call("POST", "schema-changes", {"name": "items", "sql": TABLE})
    await control.release(functions={"sql": await control.push("sql", guest("sql"), {"sql": "write"})}, now=True)
    await control.until(lambda n: n["at_target"] and n["schema_version"] == 1)
    insert = orjson.dumps({"sql": "INSERT INTO items VALUES (1, 1), (7, NULL)"})
    async with node.http.post("/functions/sql", data=insert) as answer:
        assert answer.status == 200
    return node


async def test_a_release_is_tried_and_told_and_stays_for_the_sync_to_come(
    control: Control, served: Edge, tmp_path: Path
) -> None:
    made = await rehearse(control, 2, "ALTER TABLE items ADD COLUMN total INTEGER; UPDATE items SET total = 2 * n")
    item = await found(control, made["number"])
    assert (item["outcome"], item["code"], item["row"]) == ("passed", "", ""), item
    assert [(change["number"], change["rows"]) for change in item["changes"]] == [(2, 2)]
    assert len(item["schema_digest"]) == 64
    assert sha(2) in artifacts(tmp_path)
    own = await served.until(lambda s: s["rehearsal"]["ended_at"] and s["rehearsal"]["step"] is None)
    assert (own["rehearsal"]["outcome"], own["rehearsal"]["release"]) == ("passed", made["number"])
    assert own["release"]["number"] == 1
    assert own["at_target"]
    assert f"rehearsal  of release {made['number']}: passed at " in render(own)
    assert not (tmp_path / REHEARSAL).exists()
    # Another one takes its place: its artifacts too.
    await control.call("POST", f"rollouts/default/{made['number']}/abort", {})
    await found(control, (await rehearse(control, 3))["number"])
    async with deadline(60):
        while artifacts(tmp_path) != {sha(3), hashlib.sha256(guest("sql")).hexdigest()}:
            await asyncio.sleep(0.02)


async def test_the_release_before_stays_on_disk_also_after_a_restart(control: Control, tmp_path: Path) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await push(control, 2)
        await answers(node, 2)
        await control.until(lambda n: n["at_target"])
    for number in (3, 4):
        async with edge(tmp_path):
            await found(control, (made := await rehearse(control, number))["number"])
            await control.call("POST", f"rollouts/default/{made['number']}/abort", {})
            async with deadline(60):
                while artifacts(tmp_path) != {sha(1), sha(2), sha(number)}:
                    await asyncio.sleep(0.02)
            # A rollback compiles nothing anew.
            compiled = {file.stem for file in (tmp_path / "aot").glob("*.so")}
            assert compiled & {key(sha(1), level) for level in (QUICK, BEST)}


async def test_one_that_fails_names_the_row(control: Control, served: Edge, tmp_path: Path) -> None:
    made = await rehearse(control, 2, STRICT)
    item = await found(control, made["number"])
    assert (item["outcome"], item["code"], item["row"]) == ("failed", "schema_change_failed", "items id=7")
    assert "NOT NULL constraint failed: strict.n" in item["message"]
    assert not (tmp_path / REHEARSAL).exists()
    own = await served.until(lambda s: s["rehearsal"]["ended_at"])
    assert "failed" in render(own)
    assert "Row: items id=7" in render(own)
    assert own["error"] is None


async def test_a_sync_that_begins_interrupts_it(faults: Faults, control: Control, served: Edge, tmp_path: Path) -> None:
    faults.arm("edge.rehearsal.copying", "hold")
    made = await rehearse(control, 2)
    await faults.reached("edge.rehearsal.copying")
    own = await served.until(lambda s: s["rehearsal"])
    assert (own["rehearsal"]["outcome"], own["rehearsal"]["step"]) == (None, "try")
    assert f"rehearsal  of release {made['number']}, step try, since " in render(own)
    # Polls go on meanwhile: control has taken one since.
    heard = own["control"]["heard_at"]
    await control.call("POST", "nodes/edge-1/retry", {})
    await served.until(lambda s: s["control"]["heard_at"] != heard, 60.0)
    pushed = await control.push("hello", version(3), READ)
    await control.release(functions={"hello": pushed}, now=True)
    await answers(served, 3)
    # Control doesn't want it any more.
    own = await served.until(lambda s: s["rehearsal"]["step"] is None)
    assert own["rehearsal"]["outcome"] is None
    async with deadline(60):
        while (tmp_path / REHEARSAL).exists():
            await asyncio.sleep(0.02)


async def test_one_that_a_sync_interrupted_begins_anew(
    faults: Faults, control: Control, served: Edge, tmp_path: Path
) -> None:
    """A node that tries again and again to reach a release rehearses the one that cures it all the same."""
    faults.arm("edge.rehearsal.copying", "hold")
    await rehearse(control, 2)
    await faults.reached("edge.rehearsal.copying")
    served.agent._rehearsals.give_way()
    async with deadline(60):
        while (tmp_path / REHEARSAL).exists():
            await asyncio.sleep(0.02)
    assert (await served.status())["rehearsal"]["outcome"] is None
    served.agent._rehearsals.go_on()
    own = await served.until(lambda s: s["rehearsal"]["outcome"])
    assert (own["rehearsal"]["outcome"], own["rehearsal"]["code"]) == ("passed", None)


async def test_one_that_is_aborted_ends_soon_and_one_that_is_paused_goes_on(
    faults: Faults, control: Control, served: Edge, tmp_path: Path
) -> None:
    faults.arm("edge.rehearsal.copying", "hold")
    made = await rehearse(control, 2)
    rollout = f"rollouts/default/{made['number']}"
    await faults.reached("edge.rehearsal.copying")
    held = int((faults.folder / "edge.rehearsal.copying.held").read_text())
    # As when the rollout is paused: its result still counts.
    rehearsals, id = served.agent._rehearsals, served.agent._rehearsals.id
    rehearsals.begin("")
    assert rehearsals._asking is not None
    await rehearsals._asking
    rehearsals.begin(id)
    own = await served.status()
    assert (own["rehearsal"]["outcome"], own["rehearsal"]["step"]) == (None, "try")
    assert Path(f"/proc/{held}").exists()
    await control.call("POST", f"{rollout}/abort", {})
    async with deadline(60):
        while Path(f"/proc/{held}").exists() or (tmp_path / REHEARSAL).exists():
            await asyncio.sleep(0.02)
    own = await served.until(lambda s: s["rehearsal"]["step"] is None)
    assert own["rehearsal"]["outcome"] is None
    assert ", which control no longer wants, since " in render(own)
    await control.call("POST", f"{rollout}/retry", {})
    assert (await found(control, made["number"]))["outcome"] == "passed"


async def test_what_control_cant_be_told_is_told_later(
    clock: MovedClock, control: Control, served: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = ControlClient.tell_rehearsal, 0

    async def tell(self: ControlClient, rehearsal_id: str, result: wire.RehearsalResult) -> None:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise NoAnswer("unreachable", "the cable was cut")
        await real(self, rehearsal_id, result)

    monkeypatch.setattr(ControlClient, "tell_rehearsal", tell)
    made = await rehearse(control, 2)
    assert (await found(control, made["number"]))["outcome"] == "passed"
    assert asked == 3


async def test_one_that_takes_too_long_is_unknown(
    faults: Faults, control: Control, served: Edge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = ControlClient.rehearsal

    async def short(self: ControlClient, rehearsal_id: str) -> wire.RehearsalOrder:
        order = await real(self, rehearsal_id)
        return msgspec.structs.replace(order, seconds=3.0)

    monkeypatch.setattr(ControlClient, "rehearsal", short)
    faults.arm("edge.rehearsal.begun", "hold")
    made = await rehearse(control, 2)
    item = await found(control, made["number"])
    assert (item["outcome"], item["code"]) == ("unknown", "rehearsal_timeout"), item
    assert not (tmp_path / REHEARSAL).exists()


async def test_an_artifact_that_cant_be_fetched_says_nothing_of_the_release(
    control: Control, served: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ControlClient.rehearsal

    async def wrong(self: ControlClient, rehearsal_id: str) -> wire.RehearsalOrder:
        order = await real(self, rehearsal_id)
        lost = [msgspec.structs.replace(f, url="/v1/artifacts/" + "0" * 64) for f in order.plan.functions]
        return msgspec.structs.replace(order, plan=msgspec.structs.replace(order.plan, functions=lost))

    async def gone(self: ControlClient, *_: Any) -> Any:
        raise NoAnswer("unreachable", "no way to the store")

    monkeypatch.setattr(ControlClient, "rehearsal", wrong)
    monkeypatch.setattr(ControlClient, "open_artifact", lambda *_: _Unreachable())
    made = await rehearse(control, 2)
    item = await found(control, made["number"])
    assert (item["outcome"], item["code"]) == ("unknown", "artifact_unreachable"), item


class _Unreachable:
    async def __aenter__(self) -> Any:
        raise NoAnswer("unreachable", "no way to the store")

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError


@pytest.mark.parametrize("point", ["edge.rehearsal.copying", "edge.apply.before", "edge.rehearsal.prepared"])
async def test_a_front_that_is_killed_leaves_nothing_and_rehearses_anew(
    faults: Faults, control: Control, tmp_path: Path, point: str
) -> None:
    made = NodeProcess(control, tmp_path / "node", {"SKERRY_FAULTS": str(faults.folder)})
    await made.join()
    assert await made.start()
    pushed = await control.push("version", version(1), READ)
    await control.release(functions={"version": pushed}, now=True)
    await control.until(lambda n: n["at_target"])
    faults.arm(point, "hold")
    await control.call("POST", "schema-changes", {"name": "items", "sql": TABLE})
    release = await control.release(functions={}, rehearsal_only=True)
    await faults.reached(point)
    held = int((faults.folder / f"{point}.held").read_text())
    assert (made.state / REHEARSAL).exists()
    await made.end(kill=True)
    async with deadline(60):
        while Path(f"/proc/{held}").exists() and b"Z" not in Path(f"/proc/{held}/stat").read_bytes().split()[2:3]:
            await asyncio.sleep(0.02)
    assert await made.start()
    assert (await found(control, release["number"]))["outcome"] == "passed"
    assert not (made.state / REHEARSAL).exists()
    await made.end()
