"""What a worker has of its own, and shares with no other."""

import re
from pathlib import Path

import pytest

from edge_runtime.children import immortal
from tests.guests.build import guest
from tests.support.edge import node, until


@pytest.mark.usefixtures("programs_by_exec")
@pytest.mark.skipif(not immortal.possible(), reason="this Python's counts aren't known")
async def test_a_worker_without_calls_has_copied_little_of_the_zygotes_memory(tmp_path: Path) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        await until(lambda: any(link.spare and link.serials and not link.jobs for link in edge.front.pool.links))
        (spare,) = edge.spares()
        (own,) = re.findall(r"Private_Dirty: +(\d+) kB", Path(f"/proc/{spare}/smaps_rollup").read_text())
    # 2,400 to 2,800 on Debian 13; 3,600 to 4,000 where references to the zygote's objects are counted.
    assert int(own) < 3300
