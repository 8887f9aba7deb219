"""The edge's checks as control runs them: in a child, few at a time, never for ever, and without our secrets."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from control import edge_check
from control.edge_check import Checks
from control.problems import ProblemError
from tests.support.control import module, until
from tests.support.deadlines import deadline


@pytest.fixture
def wasm(tmp_path: Path) -> Path:
    path = tmp_path / "a.wasm"
    path.write_bytes(module("a"))
    return path


async def test_a_module_is_described(wasm: Path) -> None:
    found = await Checks(1, 30).module(wasm, 1 << 20)
    assert (found["abi"], found["memory_pages"], found["size"]) == ("wagi", 1, wasm.stat().st_size)


async def test_a_module_over_the_limit_is_refused(wasm: Path) -> None:
    with pytest.raises(ProblemError, match="module_too_large"):
        await Checks(1, 30).module(wasm, 10)


async def test_a_change_that_fails_names_its_statement() -> None:
    with pytest.raises(ProblemError) as refused:
        await Checks(1, 30).schema([(1, "CREATE TABLE a (id INTEGER);")], "CREATE TABLE b (id);\nDROP TABLE nothing;")
    assert refused.value.code == "schema_refused"
    assert "DROP TABLE nothing" in refused.value.detail
    await Checks(1, 30).schema([(1, "CREATE TABLE a (id INTEGER);")], "ALTER TABLE a ADD COLUMN b TEXT;")


def children() -> set[psutil.Process]:
    """Our own alone: the session's database, which may be one of them, begins and ends others as it likes."""
    return set(psutil.Process().children())


# A fork may be done with it within that time.
@pytest.mark.usefixtures("programs_by_exec")
async def test_a_check_past_its_deadline_is_ended(wasm: Path) -> None:
    before = children()
    with pytest.raises(ProblemError) as slow:
        await Checks(1, 0.01).module(wasm, 1 << 20)
    assert slow.value.code == "module_refused"
    assert "took more than" in slow.value.detail
    assert children() <= before


# A fork may be done with it within that time.
@pytest.mark.usefixtures("programs_by_exec")
async def test_a_check_that_is_given_up_is_ended(wasm: Path) -> None:
    before = children()
    task = asyncio.create_task(Checks(1, 30).module(wasm, 1 << 20))

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
    await Checks(1, 30).module(wasm, 1 << 20)
    assert "secret" not in str(seen)
    assert len(seen) == 1


async def test_too_many_checks_at_once_are_refused(wasm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_check, "WAITING", 3)
    running = Checks(1, 30)
    done = await asyncio.gather(*(running.module(wasm, 1 << 20) for _ in range(5)), return_exceptions=True)
    refused = [error for error in done if isinstance(error, ProblemError)]
    assert [error.code for error in refused] == ["check_unavailable"] * 2
    assert all(error.retry_after for error in refused)


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run this in the place of each check."""
    spawn = asyncio.create_subprocess_exec

    async def other(*_: Any, **more: Any) -> Any:
        return await spawn(sys.executable, "-c", program, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", other)


async def test_a_check_that_was_taken_over_can_not_fill_our_memory(wasm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "import os\nwhile True: os.write(1, b'x' * 65536)")
    with pytest.raises(ProblemError) as refused:
        await Checks(1, 0.5).module(wasm, 1 << 20)
    assert refused.value.code == "module_refused"


async def test_an_answer_that_is_none_is_no_verdict(wasm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("", "{", "[]", "1", '{"ok": 1'):
        pretend(monkeypatch, f"print({said!r})")
        with pytest.raises(ProblemError) as failed:
            await Checks(1, 30).module(wasm, 1 << 20)
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
        runner.run(Checks(1, 30).schema([], "CREATE TABLE a (x)"))
    assert (failed.value.code, "status 3" in failed.value.detail) == ("check_unavailable", True)


async def test_a_check_that_reads_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch, """import os; os.close(0); print('{"ok": true, "warnings": [], "losses": [], "stalls": []}')"""
    )
    assert await Checks(1, 30).schema([], "x" * 1_000_000) == ([], [], [])


async def test_what_the_fence_lacks_is_logged_once(
    wasm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, """print('{"ok": true, "abi": "wagi", "unfenced": ["Landlock: none"]}')""")
    running = Checks(1, 30)
    for _ in range(2):
        assert await running.module(wasm, 1 << 20) == {"ok": True, "abi": "wagi"}
    assert [record.getMessage() for record in caplog.records if record.name == "skerry.checks"] == [
        "checks of uploads run without a part of their fence: ['Landlock: none']"
    ]
