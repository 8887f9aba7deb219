"""Control is killed between any two steps of an upload and of a deletion: nothing is missing, and nothing stays."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.clock import SetClock
from tests.support.control import module
from tests.support.programs import ControlProgram, Faults, control_program
from tests.support.replica import Replica, Site

UPLOAD = ["row.before", "row.after", "object.after", "ready.after"]
DELETE = ["rows.before", "rows.after", "object.before", "object.after", "row.after"]


async def upload(to: Replica, wasm: bytes) -> str:
    sha256 = hashlib.sha256(wasm).hexdigest()
    answer = await to.call("PUT", f"/v1/artifacts/{sha256}", wasm)
    assert answer.status in (200, 201), answer
    return sha256


async def push(to: Replica, name: str, wasm: bytes) -> None:
    """Upload and make a version, again where the upload was deleted in between."""
    sha256 = await upload(to, wasm)
    answer = await to.call("POST", f"/v1/functions/{name}/versions", {"sha256": sha256})
    assert answer.status == 201, answer


async def stored(to: Replica) -> tuple[dict[str, str], set[str]]:
    """State by key of every artifact's row, and the keys of the objects."""
    rows = await to.services.db.read(
        lambda conn: conn.fetch("SELECT sha256 || '/' || id::text AS key, state FROM artifacts")
    )
    keys = {item.key async for page in to.services.store.objects() for item in page}
    return {row["key"]: row["state"] for row in rows}, keys


async def swept(site: Site, versions: int) -> None:
    """After the sweep there is nothing but the `versions` artifacts that versions use, each with its object."""
    clock = SetClock(time="run")
    async with site.running(clock=clock) as replica:
        rows, keys = await stored(replica)
        assert {key for key, state in rows.items() if state == "ready"} <= keys, "ready, and missing from the store"
        for _ in range(2):
            clock.advance(days=8)
            await replica.services.deletions.sweep()
        rows, keys = await stored(replica)
        assert set(rows) == keys
        assert set(rows.values()) <= {"ready"}
        assert len(keys) == versions


class Killable:
    """Control as a process that is killed at a point while it does something, and started again."""

    def __init__(self, program: ControlProgram, replica: Replica, faults: Faults) -> None:
        self._program = program
        self._faults = faults
        self.replica = replica

    async def killed(self, point: str, doing: Coroutine[Any, Any, Any]) -> None:
        self._faults.arm(point, "kill")
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await doing
        await self._faults.reached(point)
        await self._program.ended()
        await self._program.again()


@pytest.fixture
async def killable(control_site: Site, tmp_path: Path) -> AsyncIterator[Killable]:
    faults = Faults(tmp_path / "faults")
    async with control_program(control_site, tmp_path / "control", faults) as (program, replica):
        yield Killable(program, replica, faults)


async def test_kills_in_uploads_that_are_repeated(control_site: Site, killable: Killable) -> None:
    for step in UPLOAD:
        await killable.killed(f"control.upload.{step}", upload(killable.replica, module(step)))
        await push(killable.replica, "f", module(step))
    await swept(control_site, len(UPLOAD))


async def test_kills_in_uploads_that_nobody_repeats(control_site: Site, killable: Killable) -> None:
    for step in UPLOAD:
        await killable.killed(f"control.upload.{step}", upload(killable.replica, module(step)))
    await swept(control_site, 0)


async def test_kills_in_deletions(control_site: Site, killable: Killable) -> None:
    to = killable.replica
    await push(to, "other", module("shared"))
    for step in DELETE:
        await push(to, "f", module("shared"))
        await push(to, "f", module(step))
        await killable.killed(f"control.delete.{step}", to.call("DELETE", "/v1/functions/f"))
        answer = await to.call("DELETE", "/v1/functions/f")
        assert answer.status == (204 if step == "rows.before" else 404)
        # The bytes that were being deleted can be had again at once.
        await push(to, "g", module(step))
    await swept(control_site, 1 + len(DELETE))
