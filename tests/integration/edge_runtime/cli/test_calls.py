"""`skerry-edge calls`: where the time of a node's slow and failed calls went, read on the node."""

import json
import time
from pathlib import Path
from typing import Any

from edge_runtime.telemetry import records, ring
from edge_runtime.telemetry.ring import Ring
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.edge import node

INSERT = b"""{"sql":"INSERT INTO notes (text) VALUES ('secret')"}"""


async def test_the_slowest_and_the_failed_calls_of_a_node(tmp_path: Path) -> None:
    state = tmp_path / "state"
    shown = ("calls", "--state", str(state))
    async with node(state) as edge:
        guests: dict[str, Any] = {"sql": (guest("sql"), {"sql": "write"}), "trap": guest("trap"), "raw": guest("raw")}
        await edge.release(guests, ["CREATE TABLE notes (text TEXT)"])
        assert (await edge.call("sql?sleep=100", INSERT, headers={"X-Request-Id": "slow.1"}))[0] == 200
        assert (await edge.call("trap", headers={"X-Request-Id": "bad.1"}))[0] == 502
        logged = await edge.call("raw?log=hello", b"Content-Type: text/plain\n\n.", headers={"X-Request-Id": "raw.1"})
        assert logged[0] == 200
    # It has ended: all of it is kept.
    status, out, err = await command(*shown)
    assert (status, err) == (0, "")
    head, *shown_calls = out.splitlines()
    assert head.split() == [
        *("ended", "function", "release", "outcome", "ms"),
        *("queue", "lock", "guest", "sql", "http", "commit", "call", "request"),
    ]
    # A busy machine may make another one the slowest.
    took = [float(line.split()[5]) for line in shown_calls]
    assert took == sorted(took, reverse=True)
    assert len(took) == 3
    (slow,) = [line for line in shown_calls if "slow.1" in line]
    assert " sql 1 " in slow
    assert slow.endswith("slow.1  POST /functions/sql")
    assert "secret" not in out
    status, out, _ = await command(*shown, "--failed")
    assert [line.split()[-3] for line in out.splitlines()[1:]] == ["bad.1"]
    assert "guest_trap" in out
    status, out, _ = await command(*shown, "--call", "bad.1")
    assert "It trapped: unreachable (0x40a)" in out
    status, out, _ = await command(*shown, "--call", "slow.1")
    assert "1 x sql INSERT INTO notes (text) VALUES (?)" in out
    status, out, _ = await command(*shown, "--call", "raw.1")
    assert out.splitlines()[-1].endswith("raw 1 raw.1: hello")
    status, out, _ = await command(*shown, "--json", "--function", "sql")
    (record,) = [json.loads(line) for line in out.splitlines()]
    assert (record["kind"], record["call"], record["function"]) == ("call", "slow.1", "sql")
    assert record["times"]["guest"] >= 0.1
    status, out, _ = await command(*shown, "--function", "nothing")
    assert (status, out) == (0, "no calls are kept\n")


async def test_what_is_kept_can_be_anything(tmp_path: Path) -> None:
    kept = Ring(tmp_path / ring.FOLDER, 1 << 20, 1e9)
    kept.start()
    moment = records.time_text(time.time())
    kept.put(records.encode({"t": moment, "kind": "call"}))
    kept.put(
        records.encode({"t": moment, "kind": "call", "seconds": "x", "times": None, "path": "/\x1b[2J", "sql": None})
    )
    kept.put(records.encode({"t": moment, "kind": "log", "message": "no call"}))
    kept.close()
    for more in ((), ("--failed",), ("--call", "x"), ("--json",)):
        status, out, _ = await command("calls", "--state", str(tmp_path), *more)
        assert status == 0
        assert "\x1b" not in out
    status, _, err = await command("calls", "--state", str(tmp_path), "--since", "yesterday")
    assert status == 2
    assert "10m" in err


async def test_a_node_that_never_ran_has_none(tmp_path: Path) -> None:
    assert await command("calls", "--state", str(tmp_path)) == (0, "no calls are kept\n", "")
