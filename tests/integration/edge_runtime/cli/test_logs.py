"""`skerry-edge logs`: what a node has kept, read on the node."""

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_runtime.telemetry import records, ring
from edge_runtime.telemetry.ring import Ring
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.deadlines import deadline, scaled
from tests.support.edge import node, until

PLAIN = b"Content-Type: text/plain\n\n."


def put(state: Path, *lines: dict[str, object]) -> None:
    kept = Ring(state / ring.FOLDER, 1 << 20, 1e9)
    kept.start()
    for line in lines:
        kept.put(records.encode(line))
    kept.close()


def line(ago: float, **more: object) -> dict[str, object]:
    return {"t": records.time_text(time.time() - ago), "kind": "log", "level": "info", "message": "m", **more}


async def test_a_node_s_lines_are_shown_while_it_runs_and_after(tmp_path: Path) -> None:
    state = tmp_path / "state"
    logs = ("logs", "--state", str(state))
    async with node(state) as edge:
        await edge.release({"raw": guest("raw"), "other": guest("raw")})
        for name, text in (("raw", "%3C4%3Eone"), ("other", "two%1B%5B2J"), ("raw", "three")):
            more = {"X-Request-Id": f"{name}.{text[-3:]}"}
            assert (await edge.call(f"{name}?log={text}", PLAIN, headers=more))[0] == 200
        assert (await edge.problem("raw?exit=3"))[0] == 502

        async def shown(*more: str) -> str:
            status, out, err = await command(*logs, *more)
            assert (status, err) == (0, "")
            return out

        async with deadline(60):
            while "exit code 3" not in await shown():
                await asyncio.sleep(0.05)
        # Records of slow calls, which the first ones are, come in between, and lines about the node itself.
        every = (await shown()).splitlines()
        lines = [text for text in every if re.search(r" (raw|other) 1 ", text) and ": POST /functions/" not in text]
        assert re.fullmatch(r"\S+Z WARNING raw 1 raw.one: one", lines[0])
        assert re.fullmatch(r"\S+Z INFO    other 1 other.%5B2J|\S+Z INFO    other 1 \S+: two\\x1b\[2J", lines[1])
        assert "exit code 3" in lines[-1]
        assert "[guest_exit]" in lines[-1]
        assert len((await shown("--kind", "log", "--function", "other")).splitlines()) == 1
        assert (await shown("--kind", "log", "--call", "raw.one")).endswith("raw.one: one\n")
        assert "three" not in await shown("--level", "warn")
        assert "[guest_exit]" in await shown("--kind", "node")
        assert (await shown("--until", "2020-01-01T00:00:00Z")) == ""
        told = [json.loads(text) for text in (await shown("--json", "--since", "1h", "--kind", "log")).splitlines()]
        assert (told[0]["level"], told[0]["function"], told[0]["message"]) == ("warning", "raw", "one")
    assert "three" in (await command(*logs))[1]


async def test_the_last_lines_or_all_since_a_time(tmp_path: Path) -> None:
    put(tmp_path, *[line(5000 - n, call=f"c{n}") for n in range(150)])
    logs = ("logs", "--state", str(tmp_path), "--json")
    assert len((await command(*logs))[1].splitlines()) == 100
    assert len((await command(*logs, "--lines", "3"))[1].splitlines()) == 3
    assert len((await command(*logs, "--since", "2h"))[1].splitlines()) == 150
    assert 0 < len((await command(*logs, "--since", "4950s"))[1].splitlines()) < 150
    status, out, err = await command(*logs, "--since", "2h", "-n", "3")
    assert (status, len(out.splitlines())) == (0, 3)
    assert "older lines" in err


@pytest.mark.parametrize("given", ["soon", "10", "10y", "2026-99-99", "-5m", ""])
async def test_a_time_that_is_none_is_refused(tmp_path: Path, given: str) -> None:
    status, _, err = await command("logs", "--state", str(tmp_path), f"--since={given}")
    assert status == 2
    assert "neither" in err


@pytest.mark.parametrize("what", ["logs", "calls"])
async def test_a_state_directory_that_is_not_there_is_refused(tmp_path: Path, what: str) -> None:
    status, out, err = await command(what, "--state", str(tmp_path / "mistyped"))
    assert (status, out) == (1, "")
    assert "mistyped" in err
    assert "--state names the node's state directory" in err
    assert "Errno" not in err
    assert "state_unusable" in err
    assert not (tmp_path / "mistyped").exists()


async def test_a_node_without_records_has_nothing_and_unreadable_ones_are_told(tmp_path: Path) -> None:
    assert (await command("logs", "--state", str(tmp_path)))[:2] == (0, "")
    (tmp_path / ring.FOLDER).write_text("")
    status, _, err = await command("logs", "--state", str(tmp_path))
    assert status == 1
    assert "state_unusable" in err


async def test_lines_are_followed_as_they_come(tmp_path: Path) -> None:
    put(tmp_path, line(1, message="before"))
    where = ("-m", "edge_runtime.cli.main", "logs", "--state", str(tmp_path), "-f", "--level", "warning")
    process = await asyncio.create_subprocess_exec(sys.executable, *where, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        found = b""

        async def read() -> None:
            nonlocal found
            assert process.stdout is not None
            while b"last" not in found:
                found += await process.stdout.readline()

        reading = asyncio.create_task(read())
        for number in range(600):
            put(tmp_path, line(0, message=f"quiet {number}"), line(0, level="error", message=f"loud {number}"))
            if b"loud" in found:
                break
            await asyncio.sleep(0.1)
        put(tmp_path, line(0, level="error", message="last"))
        await until(reading.done)
        assert b"quiet" not in found
        assert found.count(b"last") == 1
    finally:
        process.terminate()
        await process.wait()


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    """It was said that the records can't be read."""
    put(tmp_path, *[line(60, message="m" * 100) for _ in range(2000)])
    script = f"{sys.executable} -m edge_runtime.cli logs --state {tmp_path} --since 1h | head -1"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=scaled(60))
    assert (len(ran.stdout.splitlines()), ran.stderr) == (1, "")
