"""A node's processes are of one session, and Ctrl-C reaches the front alone."""

import os
from pathlib import Path

from tests.guests.build import guest
from tests.support.edge import node
from tests.support.edge_process import front_process


async def test_workers_share_the_fronts_session_and_not_its_process_group(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo")})
    async with front_process(tmp_path / "state") as front:
        workers = (await front.status())["workers"]
        pids = [workers["zygote"], *workers["pids"], *workers["spares"]]
        assert {os.getsid(pid) for pid in pids} == {os.getsid(front.pid)}
        assert {os.getpgid(pid) for pid in pids} == {workers["zygote"]}
