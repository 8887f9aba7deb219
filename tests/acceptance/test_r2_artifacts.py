"""Requirement 2: a developer uploads functions, and what control keeps of them."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from control.storage import artifact_deletions
from control.sync import monitor
from tests.guests.version import version
from tests.support import deploy, repeating
from tests.support.clock import SetClock
from tests.support.deploy import code, ok
from tests.support.programs import Faults, control_program, skerry, until
from tests.support.replica import Replica, Site

Stored = Callable[[], Any]


async def test_r2_1_an_upload_is_saved_in_the_artifact_store(live: Replica, stored: Stored, tmp_path: Path) -> None:
    wasm = version(1)
    file = tmp_path / "show.wasm"
    file.write_bytes(wasm)
    sha256 = hashlib.sha256(wasm).hexdigest()
    done = (await skerry(live, "function", "push", "show", file, "--sql", "read", "--no-release", "--json")).json()
    assert done["version"]["sha256"] == sha256

    async def alone() -> Any:
        found = await stored()
        return found if list(found.values()) == [wasm] else None

    # One of an upload that was asked for again, since its COMMIT had no answer, goes in the background.
    objects = await until(alone, "the store has the uploaded bytes once")
    assert next(iter(objects)).startswith(sha256)
    # The same bytes again are the same artifact.
    await deploy.push(live, "other", wasm)
    assert await stored() == objects


async def test_r2_1_what_is_refused_is_not_saved(live: Replica, stored: Stored, metadata: asyncpg.Connection) -> None:
    other = hashlib.sha256(b"other bytes").hexdigest()
    answer = await deploy.upload(live, version(1), other)
    assert (answer.status, code(answer)) == (409, "digest_mismatch")
    answer = await deploy.upload(live, b"\0asm\x0d\0\1\0")  # a component
    assert (answer.status, code(answer)) == (422, "module_refused")
    answer = await deploy.upload(live, b"#!/bin/sh")
    assert (answer.status, code(answer)) == (422, "module_refused")
    assert await stored() == {}
    assert await metadata.fetchval("SELECT count(*) FROM artifacts") == 0


async def test_r2_2_versions_are_numbered(live: Replica) -> None:
    sha256 = (await deploy.upload(live, version(1))).json()["sha256"]

    async def make(name: str) -> int:
        return int((await ok(live, "POST", f"/v1/functions/{name}/versions", {"sha256": sha256}))["version"])

    assert [await make("one"), await make("one"), await make("two")] == [1, 2, 1]
    # At the same time: each its own, without a gap.
    assert sorted(await asyncio.gather(*(make("one") for _ in range(12)))) == list(range(3, 15))
    assert [v["version"] for v in await deploy.items(live, "/v1/functions/one/versions")] == list(range(14, 0, -1))
    # A number never comes back.
    await ok(live, "DELETE", "/v1/functions/one/versions/14")
    assert await make("one") == 15
    await ok(live, "DELETE", "/v1/functions/one")
    assert await make("one") == 16


async def test_r2_3_metadata_is_recorded(replica: Replica, clock: SetClock, metadata: asyncpg.Connection) -> None:
    made = []
    for number in (1, 2):
        clock.advance(3600)
        wasm = version(number)
        await deploy.push(replica, "show", wasm, sql="read")
        made.append(("show", number, hashlib.sha256(wasm).hexdigest(), len(wasm), clock.time))
    rows = await metadata.fetch(
        "SELECT name, version, sha256, size, created_at FROM function_versions ORDER BY version"
    )
    assert [tuple(row) for row in rows] == made
    for name, number, sha256, size, at in made:
        shown = (await skerry(replica, "function", "show", name, str(number), "--json")).json()
        assert (shown["name"], shown["version"], shown["sha256"], shown["size"]) == (name, number, sha256, size)
        assert shown["created_at"] == at.isoformat().replace("+00:00", "Z")
        assert (shown["manifest"]["sql"], shown["created_by"]) == ("read", "admin")


async def counts(metadata: asyncpg.Connection) -> tuple[int, int]:
    """How many versions and how many artifacts the metadata database has."""
    # An upload whose first COMMIT had no answer leaves a row behind, for the sweep.
    kept = "SELECT count(*) FROM artifacts" + (" WHERE state <> 'uploading'" if repeating.REPEATS else "")
    row = await metadata.fetchrow(f"SELECT (SELECT count(*) FROM function_versions), ({kept})")
    assert row is not None
    return row[0], row[1]


async def test_r2_4_a_deletion_takes_data_from_the_store_and_the_metadata_db(
    live: Replica, stored: Stored, metadata: asyncpg.Connection
) -> None:
    first, second = version(1), version(2)
    await deploy.push(live, "show", first)
    await deploy.push(live, "show", second)
    await deploy.push(live, "same", second)
    await deploy.release(live, functions={"show": 1})

    async def left(versions: int, artifacts: int) -> bool:
        return await counts(metadata) == (versions, artifacts) and len(await stored()) == artifacts

    await until(lambda: left(3, 2), "the store has each of the two artifacts once")
    assert sorted(map(len, (await stored()).values())) == sorted(map(len, (first, second)))

    # What a target has isn't deleted, and nothing changes.
    refused = await live.call("DELETE", "/v1/functions/show")
    assert (refused.status, code(refused)) == (409, "version_in_target")
    assert "default" in refused.json()["detail"]
    assert await counts(metadata) == (3, 2)

    # Bytes that another version has stay.
    await ok(live, "DELETE", "/v1/functions/show/versions/2")
    assert await counts(metadata) == (2, 2)
    assert len(await stored()) == 2

    gone = await live.call("GET", "/v1/functions/show/versions/2")
    assert (gone.status, code(gone)) == (404, "unknown_version")

    deleted = (await skerry(live, "function", "delete", "show", "--release", "--yes", "--json")).json()
    assert deleted["deleted"] is True
    await until(lambda: left(1, 1), "the object goes soon after the answer")
    assert list((await stored()).values()) == [second]
    [group] = await deploy.items(live, "/v1/groups")
    assert group["release"]["functions"] == []
    await ok(live, "DELETE", "/v1/functions/same")
    await until(lambda: left(0, 0), "the last object goes soon after the answer")
    assert await deploy.items(live, "/v1/functions") == []


@pytest.mark.never_retry
@pytest.mark.background("monitor")
@pytest.mark.parametrize("point", ["control.delete.rows.after", "control.delete.object.after"])
async def test_r2_4_a_deletion_that_was_killed_is_finished_later(
    control_site: Site,
    stored: Stored,
    metadata: asyncpg.Connection,
    faults: Faults,
    tmp_path: Path,
    point: str,
) -> None:
    async with control_program(control_site, tmp_path / "control", faults) as (program, control):
        await deploy.push(control, "show", version(1))
        faults.arm(point, "kill")
        # It is answered at its commit, if the kill doesn't come first.
        with contextlib.suppress(aiohttp.ClientError):
            await control.call("DELETE", "/v1/functions/show")
        await program.ended()
        assert await counts(metadata) == (0, 1)
        assert len(await stored()) == (0 if "object" in point else 1)
    # The killed one went by the system's clock.
    clock = SetClock(datetime.now(UTC) + artifact_deletions.RETRY, timers="stand")
    async with control_site.running(clock=clock):

        async def clean() -> bool:
            clock.advance(monitor.SWEEP_PERIOD)
            return await counts(metadata) == (0, 0) and await stored() == {}

        await until(clean, "nothing is left of the artifact")
