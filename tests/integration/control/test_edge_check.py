"""The edge's checks as control runs them: in a child, few at a time, never for ever, and without our secrets."""

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import uvloop

from control import edge_check
from control.edge_check import Checks
from control.problems import ProblemError
from tests.guests.build import wat
from tests.support.control import module, until
from tests.support.deadlines import deadline, scaled
from tests.support.snapshots import ANSWERS, snapshot

FIRST = "CREATE TABLE a (id INTEGER);"


@pytest.fixture
def wasm(tmp_path: Path) -> Path:
    path = tmp_path / "a.wasm"
    path.write_bytes(module("a"))
    return path


async def test_a_module_is_described(wasm: Path) -> None:
    found = await Checks(1, 30).of("me").module(wasm, 1 << 20)
    assert (found["abi"], found["memory_pages"], found["size"]) == ("wagi", 1, wasm.stat().st_size)


async def test_a_module_over_the_limit_is_refused(wasm: Path) -> None:
    with pytest.raises(ProblemError, match="module_too_large"):
        await Checks(1, 30).of("me").module(wasm, 10)


async def test_a_change_that_fails_names_its_statement() -> None:
    with pytest.raises(ProblemError) as refused:
        await Checks(1, 30).of("me").schema([(1, FIRST)], "CREATE TABLE b (id);\nDROP TABLE nothing;")
    assert refused.value.code == "schema_refused"
    assert "DROP TABLE nothing" in refused.value.detail
    await Checks(1, 30).of("me").schema([(1, FIRST)], "ALTER TABLE a ADD COLUMN b TEXT;")


def children() -> set[psutil.Process]:
    """Our own alone: the session's database, which may be one of them, begins and ends others as it likes."""
    return set(psutil.Process().children())


# A fork may be done with it within that time.
@pytest.mark.usefixtures("programs_by_exec")
async def test_a_check_past_its_deadline_is_ended(wasm: Path) -> None:
    before = children()
    with pytest.raises(ProblemError) as slow:
        await Checks(1, 0.01).of("me").module(wasm, 1 << 20)
    assert slow.value.code == "module_refused"
    assert "took more than" in slow.value.detail
    assert children() <= before


# A fork may be done with it within that time.
@pytest.mark.usefixtures("programs_by_exec")
async def test_a_check_that_is_given_up_is_ended(wasm: Path) -> None:
    before = children()
    task = asyncio.create_task(Checks(1, 30).of("me").module(wasm, 1 << 20))

    async def started() -> bool:
        return bool(children() - before)

    await until(started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() <= before


async def test_the_child_has_nothing_of_our_environment(wasm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_METADATA_URL", "postgresql://u:secret@127.0.0.1/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen: list[dict[str, str]] = []
    spawn = asyncio.create_subprocess_exec

    async def spy(*arguments: Any, **more: Any) -> Any:
        seen.append(more["env"])
        return await spawn(*arguments, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)
    await Checks(1, 30).of("me").module(wasm, 1 << 20)
    assert "secret" not in str(seen)
    assert len(seen) == 1


class CountedChecks(Checks):
    """Notes what is run in the place of checks, each of which ends when the test says so."""

    def __init__(self, at_once: int) -> None:
        super().__init__(at_once, 30)
        self.run_ones: list[str] = []
        self.go_on = asyncio.Semaphore(0)

    async def _child(
        self, arguments: list[str], stdin: bytes, refused: str, deadline: float | None = None
    ) -> dict[str, Any]:
        asked = orjson.loads(stdin or b"{}")
        self.run_ones.append(asked.get("sql") or f"{arguments[0]} {asked.get('reverse', '')}")
        await self.go_on.acquire()
        return {"ok": True, "reversal": "", "kept": [], "warnings": [], "losses": [], "stalls": []}


async def test_one_who_asks_for_many_checks_holds_up_no_other(wasm: Path) -> None:
    checks = CountedChecks(1)
    one, two = checks.of("a reader"), checks.of("an admin")
    drafts = [asyncio.create_task(one.reversal([(1, "x")], number)) for number in range(34)]
    await until(lambda: asyncio.sleep(0, len(checks.run_ones) == 1))
    changes = [asyncio.create_task(two.schema([], name)) for name in ("first", "second")]
    pushed = asyncio.create_task(one.module(wasm, 1 << 20))
    # Uploads have places of their own, and the reader's waiting drafts are so many and no more.
    await until(lambda: asyncio.sleep(0, "module " in checks.run_ones))
    refused = [task.exception() for task in drafts if task.done()]
    assert {error.code for error in refused if isinstance(error, ProblemError)} == {"check_unavailable"}
    assert len(refused) == 34 - 1 - edge_check.EACH
    for _ in range(40):
        checks.go_on.release()
    await asyncio.gather(*changes, pushed, *(task for task in drafts if not task.done()))
    assert checks.run_ones[:6] == ["schema 0", "module ", "schema 1", "first", "schema 2", "second"]


async def test_whoever_has_no_check_waiting_is_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_check, "TOGETHER", 2)
    checks = CountedChecks(1)

    def ask(who: str, sql: str) -> "asyncio.Task[Any]":
        return asyncio.create_task(checks.of(who).schema([], sql))

    asked = [ask("a", "a1"), ask("a", "a2"), ask("b", "b1"), ask("b", "b2"), ask("c", "c1")]
    refused = asked.pop(3)
    await until(lambda: asyncio.sleep(0, refused.done()))
    assert isinstance(refused.exception(), ProblemError)
    for _ in asked:
        checks.go_on.release()
    await asyncio.gather(*asked)
    assert checks.run_ones == ["a1", "a2", "b1", "c1"]


async def test_what_was_checked_before_is_not_checked_again() -> None:
    checks = CountedChecks(1)
    for _ in range(10):
        checks.go_on.release()
    for number in (1, 2, 1, 1):
        found = [checks.of(who).reversal([(1, "x")], number) for who in ("one", "two", "three")]
        assert await asyncio.gather(*found) == [("", [])] * 3
    assert checks.run_ones == ["schema 1", "schema 2"]
    assert await checks.of("one").schema([], "a") == await checks.of("two").schema([], "a") == ([], [], [])
    await checks.of("one").schema([(1, "x")], "a")
    assert checks.run_ones[2:] == ["a", "a"]


async def test_a_check_that_is_given_up_while_it_waits_leaves_its_turn_to_others() -> None:
    checks = CountedChecks(1)
    asked = [asyncio.create_task(checks.of(who).schema([], who)) for who in ("a", "b", "c")]
    await until(lambda: asyncio.sleep(0, checks.run_ones == ["a"]))
    # The one that runs and the next one in the same moment: what was given to it goes on to the third.
    asked[0].cancel()
    asked[1].cancel()
    await until(lambda: asyncio.sleep(0, checks.run_ones[-1] == "c"))
    checks.go_on.release()
    assert (await asked[2]).warnings == []
    checks.go_on.release()
    await checks.of("d").schema([], "d")


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run this in the place of each check."""
    spawn = asyncio.create_subprocess_exec

    async def other(*_: Any, **more: Any) -> Any:
        return await spawn(sys.executable, "-c", program, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", other)


async def test_a_check_that_was_taken_over_can_not_fill_our_memory(wasm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "import os\nwhile True: os.write(1, b'x' * 65536)")
    with pytest.raises(ProblemError) as refused:
        await Checks(1, 0.5).of("me").module(wasm, 1 << 20)
    assert refused.value.code == "module_refused"


async def test_an_answer_that_is_none_is_no_verdict(wasm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("", "{", "[]", "1", '{"ok": 1'):
        pretend(monkeypatch, f"print({said!r})")
        with pytest.raises(ProblemError) as failed:
            await Checks(1, 30).of("me").module(wasm, 1 << 20)
        assert failed.value.code == "check_unavailable"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_check_that_ends_before_it_was_asked_has_failed(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = asyncio.create_subprocess_exec

    async def ended(*_: Any, **more: Any) -> Any:
        child = await spawn(sys.executable, "-c", "raise SystemExit(3)", **more)
        assert child.stdin is not None
        async with deadline(30):
            while not child.stdin.is_closing():
                await asyncio.sleep(0.01)
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", ended)
    with asyncio.Runner(loop_factory=loop) as runner, pytest.raises(ProblemError) as failed:
        runner.run(Checks(1, 30).of("me").schema([], "CREATE TABLE a (x)"))
    assert (failed.value.code, "status 3" in failed.value.detail) == ("check_unavailable", True)


async def test_a_check_that_reads_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch, """import os; os.close(0); print('{"ok": true, "warnings": [], "losses": [], "stalls": []}')"""
    )
    assert await Checks(1, 30).of("me").schema([], "x" * 1_000_000) == ([], [], [])


async def test_what_the_fence_lacks_is_logged_once(
    wasm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, """print('{"ok": true, "abi": "wagi", "unfenced": ["Landlock: none"]}')""")
    running = Checks(1, 30).of("me")
    for _ in range(2):
        assert await running.module(wasm, 1 << 20) == {"ok": True, "abi": "wagi"}
    assert [record.getMessage() for record in caplog.records if record.name == "skerry.checks"] == [
        "checks of uploads run without a part of their fence: ['Landlock: none']"
    ]


async def test_the_probe_of_a_snapshot_is_tried_once_its_engine_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take longer than one who asks waits for, and then goes on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, database = tmp_path / "f.wasm", tmp_path / "database" / "skerry.db"
    file.write_bytes(snapshot(wat(ANSWERS), 9, [(70_000, bytes(range(256)) * 1200)]))
    database.parent.mkdir()
    sqlite3.connect(database).close()
    manifest = {"abi": "direct", "sql": "none", "probe": {"path": "/", "status": 201}}
    probed = {"name": "f", "version": 1, "manifest": manifest, "file": str(file)}
    asked = orjson.dumps({"database": str(database), "changes": [], "probes": [probed]})
    untried = "the probe of f@1 wasn't tried: its engine isn't compiled yet; try again in a minute"
    checks = Checks(1, scaled(60))
    assert (await checks.run("me", ["restored"], asked, "x"))["untried"] == [untried]

    checks._deadline = 0.001
    await checks.engines([file])
    assert checks._engines is not None
    assert not checks._engines.done()
    checks._deadline = scaled(60)
    await checks.engines([file])
    assert (await checks.run("me", ["restored"], asked, "x")) == {
        "ok": True,
        "findings": ["the probe of f@1 fails: GET / answers 200 in place of 201:"],
        "untried": [],
    }
    (engine,) = (tmp_path / "cache" / "skerry" / "aot").glob("*.so")
    made = engine.stat().st_mtime_ns
    # It fails before the change, too, so that nothing is told of it.
    assert await checks.of("me").probes([], FIRST, None, [probed]) == []
    assert engine.stat().st_mtime_ns == made
