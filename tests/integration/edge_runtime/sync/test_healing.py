"""A node whose files were damaged, or changed by others, comes back to its target by itself."""

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from edge_runtime.aot_cache import verify
from edge_runtime.sql import database
from edge_runtime.sync import retries
from tests.guests.version import version
from tests.support.agents import Control, edge, joined
from tests.support.control import until as settled
from tests.support.deadlines import scaled
from tests.support.edge import BACKGROUND, until
from tests.support.releases import answers, first_release, push, sha

pytestmark = pytest.mark.timeout(600)


def lose(state: Path, number: int, *, damaged: bool = False) -> None:
    """The artifact of a version and all compiled code."""
    artifact = state / "artifacts" / f"{sha(number)}.wasm"
    for file in (artifact, *(state / "aot").glob("*.so")):
        # What workers have mapped stays as it is.
        file.unlink()
    if damaged:
        artifact.write_bytes(version(number + 1))


async def synced(control: Control, times: int) -> None:
    """Wait for the report of the last one; there were no more, and none failed."""

    async def reported() -> bool:
        syncs = (await control.call("GET", "syncs"))["items"]
        assert len(syncs) <= times
        return [s["status"] for s in syncs] == ["succeeded"] * times

    await settled(reported)


async def test_a_lost_artifact_is_fetched_again_after_a_start(control: Control, tmp_path: Path) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await control.until(lambda n: n["at_target"])
    lose(tmp_path, 1)
    async with edge(tmp_path) as node:
        await answers(node, 1)
        seen = await control.until(lambda n: n["at_target"])
        assert [f["sha256"] for f in seen["functions"]] == [sha(1)]
        assert seen["failures"] == 0
        await synced(control, 2)


async def test_a_damaged_artifact_is_fetched_again_while_the_node_runs(control: Control, tmp_path: Path) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await node.until(lambda s: all(f["best"] for f in s["functions"]) and s["at_target"])
        lose(tmp_path, 1, damaged=True)
        deaths = (await node.status())["workers"]["deaths"]
        for link in node.front.pool.links:
            os.kill(link.child.pid, 9)
        await node.until(lambda s: s["workers"]["deaths"] > deaths)
        await answers(node, 1)
        await control.until(lambda n: n["at_target"])
        assert (tmp_path / "artifacts" / f"{sha(1)}.wasm").read_bytes() == version(1)
        # Not again and again.
        await synced(control, 2)


async def test_a_damaged_artifact_is_noticed_at_target_and_at_a_start(control: Control, tmp_path: Path) -> None:
    """Nobody needs it: its compiled code serves. It is fetched again, so that the node doesn't depend on that."""
    await joined(control, tmp_path)
    artifact = tmp_path / "artifacts" / f"{sha(1)}.wasm"
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await node.until(lambda s: s["at_target"] and s["functions"][0]["best"], scaled(BACKGROUND))
        await node.until(lambda s: s["verified"]["at"], scaled(BACKGROUND))
        artifact.write_bytes(version(2))
        await node.front.verification.check()
        status = await node.status()
        assert status["verified"]["damaged"] == [artifact.name]
        await node.until(lambda s: s["at_target"] and artifact.read_bytes() == version(1))
        await answers(node, 1)
    artifact.write_bytes(b"")
    async with edge(tmp_path) as node:
        await node.until(lambda s: s["at_target"] and artifact.read_bytes() == version(1))
        await node.until(lambda s: not s["functions"][0]["lost"])
        await node.front.verification.check()
        assert (await node.status())["verified"]["damaged"] == []
        await synced(control, 3)


async def test_damaged_compiled_code_is_noticed_and_made_again(control: Control, tmp_path: Path) -> None:
    """Before it is called: it might crash, or compute wrongly, where it is loaded already."""
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await node.until(lambda s: s["at_target"] and s["functions"][0]["best"], scaled(BACKGROUND))
        release = node.front.manager.release
        assert release is not None
        code = Path(release.functions[0].aot)
        with code.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        await node.front.verification.check()
        await until(lambda: node.front.manager.release is not release, scaled(BACKGROUND))
        await node.until(lambda s: s["functions"][0]["best"], scaled(BACKGROUND))
        again = node.front.manager.release
        assert again is not None
        verify(code, again.functions[0].aot_digest)
        await answers(node, 1)
        assert (await node.status())["workers"]["deaths"] == 0


FORGERY = """
UPDATE _skerry_functions SET manifest = json_set(manifest, '$.http', json('{"hosts":["evil.example.org"]}'));
UPDATE _skerry_release SET generation = 4000000000, release_id = 'forged';
"""


async def test_a_forged_release_is_not_served_and_told_and_replaced(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await push(control, 2)
        await answers(node, 2)
        await control.until(lambda n: n["at_target"])
        release = node.front.manager.release
    forge(tmp_path)
    await control.stop()
    async with edge(tmp_path) as node:
        status = await node.status()
        assert (status["release"], status["calls"]["held"]) == (None, "all")
        assert status["error"]["code"] == "database_unverified"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(node.call("hello"), 0.3)
            raise AssertionError("it was answered")
        monkeypatch.setattr(retries, "RETRY_BASE", 0.5)
        await control.start()
        await answers(node, 2)
        seen = await control.until(lambda n: n["at_target"])
        assert [f["version"] for f in seen["functions"]] == [2]
        syncs = (await control.call("GET", "syncs"))["items"]
        assert "database_unverified" in {s["error"]["code"] for s in syncs if s["error"]}
    # What it serves after another start is what was released.
    async with edge(tmp_path) as node:
        await answers(node, 2)
        found = node.front.manager.release
        assert release is not None
        assert found is not None
        assert found.generation == release.generation
        assert [f.manifest for f in found.functions] == [f.manifest for f in release.functions]


def forge(state: Path) -> None:
    """As a worker could that was taken over."""
    with contextlib.closing(sqlite3.connect(state / database.FILE)) as opened, opened:
        opened.executescript(FORGERY)
