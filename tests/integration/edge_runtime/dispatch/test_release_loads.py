"""Workers load a release's modules a half of them at a time."""

import asyncio
from pathlib import Path

import pytest

from edge_runtime.dispatch.supervisor import Supervisor
from edge_runtime.dispatch.worker_link import WorkerLink
from tests.guests.build import guest
from tests.support.edge import node, until
from tests.support.programs import Faults


async def test_a_half_of_the_workers_serves_while_the_other_loads(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered: list[WorkerLink] = []
    load = Supervisor._load

    def noted(self: Supervisor, link: WorkerLink, serial: int) -> object:
        ordered.append(link)
        return load(self, link, serial)

    async with node(tmp_path / "state", workers=3) as edge:
        await edge.release({"echo": guest("echo")})
        await until(lambda: len([link for link in edge.front.pool.links if link.usable]) == 4)
        monkeypatch.setattr(Supervisor, "_load", noted)
        faults.arm("edge.load.before", "hold")
        release = asyncio.ensure_future(edge.release({"echo": guest("echo"), "env": guest("env")}))
        await faults.reached("edge.load.before")
        # The other worker of the first half has loaded it by then, and the second half isn't asked before the first is
        # done.
        serial = edge.front.pool.serial + 1
        await until(lambda: len([link for link in ordered if serial in link.serials]) == 1)
        assert len(ordered) == 2
        for _ in range(8):
            assert (await edge.call("echo"))[0] == 200
        assert len(ordered) == 2
        faults.let_go("edge.load.before")
        await release
        # The last is the spare worker, for which no release waits.
        await until(lambda: len(ordered) == 4)
        assert len(set(ordered)) == 4
