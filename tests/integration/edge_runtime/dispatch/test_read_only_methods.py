"""Calls by the methods that a manifest says only read: whatever the function tries, they write nothing, and wait for no
writer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge_runtime.errors import SyncFailed
from tests.guests.build import guest
from tests.support.edge import Node, node
from tests.support.gate import gate

TABLE = ["CREATE TABLE rows (name TEXT)"]
INSERT = b"""{"sql":"INSERT INTO rows VALUES ('x')"}"""
COUNT = b'{"sql":"SELECT count(*) FROM rows"}'
WRITE: dict[str, Any] = {"sql": "write"}
KEPT: dict[str, Any] = {"sql": "write", "read_only_methods": ["GET", "HEAD"]}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Node]:
    async with node(tmp_path / "state", lock_hold=60.0) as made:
        yield made


async def rows(edge: Node) -> int:
    return int(orjson.loads((await edge.call("f", COUNT))[2])["rows"][0][0])


async def test_get_and_head_write_nothing_and_the_error_says_what_to_do(edge: Node) -> None:
    await edge.release({"f": (guest("sql"), KEPT)}, TABLE)
    for method in ("GET", "HEAD", "GET"):
        status, _, body = await edge.call("f", INSERT, method)
        assert status == 200
    error = orjson.loads(body)["error"]
    assert error["code"] == "not_granted"
    assert "calls with GET only read" in error["message"]
    assert "read_only_methods" in error["message"]
    assert await rows(edge) == 0
    assert edge.front.pool.tallies["f"].denied == {"sql": 3}
    assert (await edge.call("f", INSERT))[0] == 200
    assert orjson.loads((await edge.call("f", COUNT, "GET"))[2])["rows"] == [[1]]


async def test_a_manifest_of_before_writes_by_every_method(edge: Node) -> None:
    await edge.release({"f": (guest("sql"), WRITE)}, TABLE)
    await edge.call("f", INSERT, "GET")
    await edge.call("f", INSERT, "HEAD")
    assert await rows(edge) == 2
    # What a newer version of the function says holds from the flip on.
    await edge.release({"f": (guest("sql"), KEPT)})
    await edge.call("f", INSERT, "GET")
    assert await rows(edge) == 2


async def test_such_a_call_waits_for_no_writer(edge: Node) -> None:
    async with gate() as held:
        function = guest("fetch"), {**KEPT, "http": held.grant, "time_limit_ms": 60_000}
        await edge.release({"f": function}, TABLE)
        writing = asyncio.create_task(edge.call("f", b"SQL %b\n%b" % (INSERT, held.request().encode())))
        await held.reached()
        # It sees what was committed before.
        assert orjson.loads((await edge.call("f", b"SQL " + COUNT, "GET"))[2])["rows"] == [[0]]
        assert not writing.done()
        held.open.set()
        assert (await writing)[0] == 200
        assert orjson.loads((await edge.call("f", b"SQL " + COUNT, "GET"))[2])["rows"] == [[1]]


async def test_a_probe_by_get_that_writes_fails_the_release(edge: Node) -> None:
    await edge.release({"f": (guest("sql"), KEPT)}, TABLE)
    insert = {"path": "/?status=200", "body": INSERT.decode()}
    with pytest.raises(SyncFailed, match="calls with GET only read"):
        await edge.release({"f": (guest("sql"), {**KEPT, "probe": {**insert, "status": 201}})})
    await edge.release({"f": (guest("sql"), {**KEPT, "probe": {**insert, "method": "POST"}})})
    assert await rows(edge) == 0
