"""A release comes between calls: each call runs wholly on one, none fails of it, and a failed one changes nothing."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge_runtime.dispatch.pool import Pool
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.release import applier_process, manager, stored_release
from edge_runtime.wasmedge import BEST
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.deadlines import deadline, scaled
from tests.support.edge import BACKGROUND, Node, node, until
from tests.support.programs import Faults

FIRST = [
    "CREATE TABLE generation (number INTEGER)",
    "INSERT INTO generation VALUES (1)",
    "CREATE TABLE done (name TEXT)",
]
READ: Mapping[str, Any] = {"sql": "read"}
WRITE: Mapping[str, Any] = {"sql": "write"}


def functions(number: int) -> dict[str, Any]:
    return {"version": (version(number), READ), "slow": (guest("slow"), READ), "sql": (guest("sql"), WRITE)}


async def numbers(edge: Node) -> tuple[int, int]:
    status, _, body = await edge.call("version")
    assert status == 200, body
    answer = orjson.loads(body)
    return answer["version"], answer["schema"]["rows"][0][0]


async def test_releases_under_load(tmp_path: Path) -> None:
    """Code and schema always agree, no call fails, and what was acknowledged is there."""
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        stop = False
        written: list[str] = []
        seen: set[int] = set()

        async def reader() -> None:
            while not stop:
                code, schema = await numbers(edge)
                assert code == schema
                seen.add(code)

        async def slow_reader() -> None:
            while not stop:
                status, _, body = await edge.call("slow?ms=30")
                assert status == 200, body
                answer = orjson.loads(body)
                assert answer["first"] == answer["second"]

        async def writer(which: int) -> None:
            turn = 0
            while not stop:
                turn += 1
                name = f"{which}-{turn}"
                insert = orjson.dumps({"sql": "INSERT INTO done VALUES (?)", "params": [name]})
                status, _, body = await edge.call("sql", insert)
                assert status == 200, body
                assert orjson.loads(body)["changes"] == 1
                written.append(name)

        async with asyncio.TaskGroup() as group:
            for which in range(8):
                group.create_task(reader())
                if which < 3:
                    group.create_task(writer(which))
            group.create_task(slow_reader())
            for number in range(2, 9):
                await edge.release(functions(number), [f"UPDATE generation SET number = {number}"])
                assert await numbers(edge) == (number, number)
            stop = True
        assert len(seen) > 4
        _, _, body = await edge.call("sql", b'{"sql":"SELECT name FROM done"}')
        assert sorted(row[0] for row in orjson.loads(body)["rows"]) == sorted(written)


async def test_the_database_is_the_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that were not held, as if the front knew nothing of the commit, run on the wrong release never."""
    for name in ("hold_writes", "hold_at_commit"):
        monkeypatch.setattr(Pool, name, lambda self, *_: None)
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        stop = False
        seen: set[int] = set()

        async def reader() -> None:
            while not stop:
                status, _, body = await edge.call("version")
                answer = orjson.loads(body)
                if status != 200:
                    # So it ends after some seconds of tries, where a busy machine's applier is slow to tell its commit.
                    assert (status, answer["code"]) == (503, "release_changing")
                    continue
                assert answer["version"] == answer["schema"]["rows"][0][0]
                seen.add(answer["version"])

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(reader())
            for number in range(2, 7):
                await edge.release(functions(number), [f"UPDATE generation SET number = {number}"])
                assert await numbers(edge) == (number, number)
            stop = True
        assert len(seen) > 3


async def test_a_change_that_fails_leaves_the_old_release(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        before = edge.front.manager.inventory
        with pytest.raises(SyncFailed) as failed:
            await edge.release(functions(2), ["UPDATE generation SET number = 2", "INSERT INTO nothing VALUES (1)"])
        assert failed.value.code == "schema_change_failed"
        assert await numbers(edge) == (1, 1)
        assert edge.front.manager.inventory == before
        await edge.release(functions(2), ["UPDATE generation SET number = 2"])
        assert await numbers(edge) == (2, 2)


async def test_a_module_that_cant_be_loaded_leaves_the_old_release(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        plan, local = edge.plan({"version": (version(9), READ)})
        made = await edge.front.compiler.functions(local)
        Path(made[0].code[0]).write_bytes(b"not what was compiled")
        with pytest.raises(SyncFailed) as failed:
            await edge.front.manager.apply(plan, made)
        assert failed.value.code == "function_unloadable"
        assert await numbers(edge) == (1, 1)


async def test_an_artifact_that_cant_be_compiled_is_a_failed_sync(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        with pytest.raises(SyncFailed) as failed:
            await edge.release({"broken": b"\0asm\1\0\0\0 and then nothing that is wasm"})
        assert failed.value.code == "compile_failed"
        assert await numbers(edge) == (1, 1)


async def test_a_release_that_takes_too_long_is_undone(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        limit, told = 0.3, "nothing yet"
        while "nothing yet" in told:
            # From here on: the first release may take its time. And so may an applier to begin, on a busy machine.
            edge.front.manager._apply_limit, limit = limit, limit * 3
            with pytest.raises(SyncFailed) as failed:
                await edge.release(functions(2), [endless])
            assert failed.value.code == "apply_timeout"
            told = failed.value.message
        assert "statement: WITH RECURSIVE n(x)" in told
        assert await numbers(edge) == (1, 1)
        # The writer lock is free, and calls that write go on.
        assert (await edge.call("sql", b'{"sql":"SELECT 1"}'))[0] == 200


async def test_calls_wait_while_a_release_is_prepared_and_reads_go_on(tmp_path: Path, faults: Faults) -> None:
    async with node(tmp_path / "state", queue_wait=60.0) as edge:
        await edge.release(functions(1), FIRST)
        # The applier stays between the changes and the commit, however long the calls take.
        faults.arm("edge.apply.after", "hold")
        release = asyncio.ensure_future(edge.release(functions(2), ["UPDATE generation SET number = 2"]))
        await faults.reached("edge.apply.after")
        assert edge.front.pool.hold.name == "WRITES"
        writing = asyncio.ensure_future(edge.call("sql", b'{"sql":"INSERT INTO done VALUES (\'held\')"}'))
        assert await numbers(edge) == (1, 1)
        await until(lambda: edge.front.pool.waiting == 1)
        assert not writing.done()
        faults.let_go("edge.apply.after")
        await release
        assert (await writing)[0] == 200
        assert await numbers(edge) == (2, 2)


async def test_a_function_that_a_release_removes_is_unknown_after_it(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        await edge.release({"version": (version(1), READ)})
        assert await edge.problem("slow") == (404, "function_unknown")
        assert await numbers(edge) == (1, 1)


@pytest.mark.never_retry
@pytest.mark.parametrize("point", ["edge.apply.before", "edge.apply.after", "edge.commit.before", "edge.commit.after"])
async def test_an_applier_that_is_killed(tmp_path: Path, faults: Faults, point: str) -> None:
    """Around the COMMIT nobody knows whether it happened: the libsql file says so, before any call goes."""
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        faults.arm(point, "kill")
        callers = [asyncio.ensure_future(numbers(edge)) for _ in range(10)]
        if point == "edge.commit.after":
            await edge.release(functions(2), ["UPDATE generation SET number = 2"])
            expected = (2, 2)
        else:
            with pytest.raises(SyncFailed) as failed:
                await edge.release(functions(2), ["UPDATE generation SET number = 2"])
            assert failed.value.code == "applier_died"
            expected = (1, 1)
        assert await numbers(edge) == expected
        assert set(await asyncio.gather(*callers)) <= {(1, 1), (2, 2)}
        assert edge.front.manager.inventory.schema_version == len(FIRST) + (expected == (2, 2))
        assert (await edge.call("sql", b'{"sql":"SELECT 1"}'))[0] == 200
    async with node(tmp_path / "state") as again:
        assert await numbers(again) == expected


async def test_an_applier_that_doesnt_answer_has_ended_before_the_file_is_asked(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it could commit after the file has said that it didn't."""
    appliers: list[Child] = []
    prepare, until_answered = applier_process.prepare, stored_release.until_answered

    async def prepared(applier: Child, *more: Any) -> Any:
        appliers.append(applier)
        return await prepare(applier, *more)

    async def asked(*given: Any) -> Any:
        assert appliers[-1].exited.done()
        return await until_answered(*given)

    monkeypatch.setattr(applier_process, "prepare", prepared)
    monkeypatch.setattr(stored_release, "until_answered", asked)
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        monkeypatch.setattr(manager, "COMMIT_LIMIT", 0.2)
        faults.arm("edge.commit.before", "hold")
        with pytest.raises(SyncFailed) as failed:
            await edge.release(functions(2), ["UPDATE generation SET number = 2"])
        assert failed.value.code == "applier_died"
        assert await numbers(edge) == (1, 1)


@pytest.mark.never_retry
async def test_the_zygote_is_killed_while_a_release_is_prepared(tmp_path: Path, faults: Faults) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(1), FIRST)
        faults.arm("edge.commit.before", "hold")
        release = asyncio.ensure_future(edge.release(functions(2), ["UPDATE generation SET number = 2"]))
        await faults.reached("edge.commit.before")
        assert await numbers(edge) == (1, 1)
        os.kill(edge.front.processes.pid, 9)
        with pytest.raises(SyncFailed) as failed:
            await release
        assert failed.value.code == "applier_died"
        assert await numbers(edge) == (1, 1)


async def test_a_node_starts_with_the_release_that_its_file_has(tmp_path: Path) -> None:
    """No network, and AOT files that are missing or damaged are made again from the artifacts."""
    state = tmp_path / "state"
    async with node(state) as edge:
        await edge.release(functions(1), FIRST)
    for damage in (b"", b"damaged"):
        for path in (state / "aot").glob("*.so"):
            path.write_bytes(damage) if damage else path.unlink()
        async with node(state) as again:
            assert await numbers(again) == (1, 1)
            release = again.front.manager.release
            assert release is not None
            assert (release.number, release.generation, release.schema_version) == (1, 1, len(FIRST))


@pytest.mark.timeout(600)
async def test_a_function_whose_artifact_is_lost_costs_the_others_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with node(state) as edge:
        await edge.release(functions(1), FIRST)
        release = edge.front.manager.release
        assert release is not None
        lost = next(f.sha256 for f in release.functions if f.name == "slow")
    (state / "artifacts" / f"{lost}.wasm").unlink()
    for path in (state / "aot").glob("*.so"):
        path.unlink()
    # Also where the start doesn't wait to see that nothing can be compiled, and the others get better code meanwhile.
    for settings in ({}, {"compile_wait": 0.001, "best": BEST}):
        async with node(state, **settings) as again:
            assert await numbers(again) == (1, 1)
            assert await again.problem("slow") == (503, "function_uncompiled")
            release = again.front.manager.release
            assert release is not None
            if settings:
                await until(
                    lambda front=again.front: all(
                        front.compiler.is_best(f) for f in front.manager.release.functions if f.name != "slow"
                    ),
                    scaled(BACKGROUND),
                )
                assert await numbers(again) == (1, 1)
                assert await again.problem("slow") == (503, "function_uncompiled")


@pytest.mark.timeout(600)
async def test_the_best_compiled_code_takes_over_without_a_failed_call(tmp_path: Path) -> None:
    async with node(tmp_path / "state", best=BEST) as edge:
        await edge.release({"echo": guest("echo")})
        first = edge.front.pool.serial
        calls = 0
        async with deadline(BACKGROUND):
            while edge.front.pool.serial == first:
                assert (await edge.call("echo", b"%d" % calls))[2] == b"%d" % calls
                calls += 1
                await asyncio.sleep(0.005)  # which leaves a processor to the compiler, too
        assert calls > 0
        assert (await edge.call("echo", b"after"))[2] == b"after"
        release = edge.front.manager.release
        assert release is not None
        await until(lambda: all(link.serials == {edge.front.pool.serial} for link in edge.front.pool.links))


@pytest.mark.timeout(600)
async def test_a_damaged_aot_file_is_made_again(tmp_path: Path) -> None:
    """A new worker finds it damaged; the others serve on from what they have loaded."""
    async with node(tmp_path / "state", best=BEST) as edge:
        await edge.release({"echo": guest("echo")})
        release = edge.front.manager.release
        assert release is not None
        await until(lambda: edge.front.pool.serial == 2, scaled(BACKGROUND))
        for path in edge.state.aot.glob("*.so"):
            # In a new file: the one that workers have mapped must stay as it is.
            path.unlink()
            path.write_bytes(b"damaged")
        killed = edge.workers() | edge.spares()
        for pid in killed:
            os.kill(pid, 9)
        # A call that the front has sent before it sees that gets 502.
        await until(lambda: killed.isdisjoint(edge.workers() | edge.spares()))
        async with deadline(BACKGROUND):
            while edge.front.pool.serial == 2:
                status, _, body = await edge.call("echo", b"again")
                assert status == 503 or (status, body) == (200, b"again")
                await asyncio.sleep(0.05)
        assert (await edge.call("echo", b"again"))[2] == b"again"
