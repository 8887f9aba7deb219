"""A sync needs one process that compiles and one that tries and applies, and leaves none."""

from typing import Any

import pytest

from control.protocol import faults
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.release import applier_process, compile_jobs
from edge_runtime.sync.artifacts import Artifacts
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.agents import Control, Edge
from tests.support.edge import until
from tests.support.releases import READ, answers, first_release

PROBED = {**READ, "probe": {"path": "/", "status": 200}}


def beside_workers(node: Edge) -> set[int]:
    """Ids of the children that are no workers."""
    return set(node.front.processes._children) - {link.child.id for link in node.front.pool.links}


@pytest.fixture
def seen(node: Edge, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of syncs, and the kinds of children that are asked for in them."""
    found: list[str] = []
    birth, reach = node.front.processes.birth, faults.reach

    async def noted(kind: Any, *, background: bool = False, **more: Any) -> Child:
        if kind not in ("compiler", "applier") or background:
            return await birth(kind, background=background, **more)
        found.append(kind)
        return await birth(kind, **more)

    def reached(point: str) -> None:
        if point.startswith("edge.sync."):
            found.append(point.removeprefix("edge.sync."))
        reach(point)

    async def uncounted(_: object) -> None:
        """At a time of its own a node counts its rows, by an applier that no sync asks for."""

    monkeypatch.setattr(applier_process, "count_rows", uncounted)
    monkeypatch.setattr(node.front.processes, "birth", noted)
    monkeypatch.setattr(faults, "reach", reached)
    return found


async def test_one_compiles_and_one_tries_and_applies(control: Control, node: Edge, seen: list[str]) -> None:
    await first_release(control)
    await answers(node, 1)
    await control.until(lambda n: n["at_target"])
    seen.clear()
    await control.release(functions={"hello": await control.push("hello", version(2), PROBED)})
    await answers(node, 2)
    assert [each for each in seen if "." not in each] == ["compiler", "applier"]
    await until(lambda: not beside_workers(node))


@pytest.mark.parametrize("fails", ["fetch", "compile", "probe"])
async def test_a_sync_that_fails_leaves_no_process(
    control: Control, node: Edge, seen: list[str], fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(control)
    await answers(node, 1)
    await control.until(lambda n: n["at_target"])
    seen.clear()
    manifest: dict[str, Any] = {**READ, "probe": {"path": "/", "status": 299 if fails == "probe" else 200}}
    pushed = await control.push("hello", guest("echo") if fails == "probe" else version(2), manifest)
    if fails != "probe":
        module, name = (Artifacts, "_finish") if fails == "fetch" else (compile_jobs, "install")
        monkeypatch.setattr(module, name, _refused)
    await control.release(functions={"hello": pushed})
    await control.until(lambda n: n["failures"])
    await until(lambda: not beside_workers(node))


def _refused(*_: Any) -> None:
    raise OSError(5, "Input/output error")
