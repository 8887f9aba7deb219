"""A schema change is tried with the probes of the functions that groups' releases have: a failing one is a warning."""

import errno
import os
from typing import Any

import pytest

from control.edge_check import OperatorChecks
from control.problems import ProblemError
from control.sync import probed_functions
from tests.guests.version import version
from tests.support.control import Control

TABLES = "CREATE TABLE generation (number INTEGER NOT NULL); CREATE TABLE other (x)"
PROBE = {"probe": {"path": "/"}, "sql": "read"}
LOOPS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n, generation"


async def warned(control: Control, sql: str, where: str = "/v1/schema-changes?plan=true") -> list[str]:
    body = {"sql": sql} if "revisions" in where else {"name": "next", "sql": sql}
    change: Any = (await control.ok("POST", where, body))["change"]
    return [warning["message"] for warning in change["warnings"]]


async def test_the_probes_of_releases_are_run_after_a_change(control: Control) -> None:
    await control.ok("POST", "/v1/schema-changes", {"name": "tables", "sql": TABLES})
    await control.push("asks", version(1), **PROBE)
    await control.push("quiet", version(2), sql="read")
    await control.push("afar", version(3), http={"hosts": ["example.org"]}, **PROBE)
    await control.push("secret", version(4), secrets=["key"], **PROBE)
    await control.push("fails", version(5, "SELECT nowhere FROM generation"), **PROBE)
    drop = "DROP TABLE generation"
    # In no release yet.
    assert await warned(control, drop) == []
    names = ("asks", "quiet", "afar", "secret", "fails")
    await control.release(functions=dict.fromkeys(names, 1), allow_unfit=True)
    await control.ok("POST", "/v1/groups", {"name": "north"})
    await control.release(group="north", functions={"asks": 1})
    # One warning, whatever the number of groups: another that fails did so before, and the others can't be run here.
    [message] = await warned(control, drop)
    assert message.startswith("the probe of asks@1 fails after it: GET / answers 500 in place of 200: ")
    assert await warned(control, "DROP TABLE other") == []
    amended = f"{TABLES}; CREATE TABLE IF NOT EXISTS generation (y)"
    assert await warned(control, amended, "/v1/schema-changes/1/revisions?plan=true") == []


async def test_a_probe_without_an_end_ends(control: Control) -> None:
    await control.ok("POST", "/v1/schema-changes", {"name": "tables", "sql": TABLES})
    await control.push("loops", version(1, LOOPS), **PROBE)
    await control.release(functions={"loops": 1})
    [message] = await warned(control, "CREATE TABLE more (x)")
    assert "the probe of loops@1 wasn't tried to its end: it took more than 5 s" in message


async def test_probes_that_are_not_run_are_told_and_refuse_no_change(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control.ok("POST", "/v1/schema-changes", {"name": "tables", "sql": TABLES})
    for number, name in enumerate(("one", "two"), 1):
        await control.push(name, version(number), **PROBE)
    await control.release(functions={"one": 1, "two": 1})
    more = "CREATE TABLE more (x)"
    assert await warned(control, more) == []
    left = "not run after it: 1 of 2 probes: too many, or too large"
    for bound, value in (("MOST", 1), ("BYTES", len(version(1)))):
        with monkeypatch.context() as patch:
            patch.setattr(probed_functions, bound, value)
            assert await warned(control, more) == [left], bound

    async def unavailable(*_: Any) -> Any:
        raise ProblemError("check_unavailable", "too much is to be checked")

    monkeypatch.setattr(OperatorChecks, "probes", unavailable)
    [message] = await warned(control, more)
    assert message.startswith("the probes of functions couldn't be run after it: too much is to be checked")


async def test_a_disk_without_room_for_probes_refuses_no_change(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control.ok("POST", "/v1/schema-changes", {"name": "tables", "sql": TABLES})
    await control.push("asks", version(1), **PROBE)
    await control.release(functions={"asks": 1})

    def full(*_: Any, **_more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(probed_functions.tempfile, "TemporaryDirectory", full)
    [message] = await warned(control, "CREATE TABLE more (x)")
    assert message == "the probes of functions couldn't be run after it: [Errno 28] No space left on device"
