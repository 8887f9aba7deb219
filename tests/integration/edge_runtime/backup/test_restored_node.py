"""A node whose backup is at the real store, by the real control: it goes back and forth, and comes on another disk."""

import asyncio
import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge_runtime.cli.status import render
from edge_runtime.state import DATA_AWAITED
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.agents import Control, Edge, edge, joined
from tests.support.deadlines import deadline

pytestmark = pytest.mark.never_retry

NOTES = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"
MORE = "ALTER TABLE notes ADD COLUMN more TEXT; UPDATE notes SET text = 'spoilt'"


@pytest.fixture
async def state(control: Control, tmp_path: Path) -> Path:
    """The state directory of a node of a group that is backed up every second, and is at release 1."""
    await joined(control, tmp_path / "state")
    await control.call("PUT", "groups/default/backup", {"interval": 1.0})
    await control.call("POST", "schema-changes", {"name": "notes", "sql": NOTES})
    await control.release(functions={"sql": await control.push("sql", guest("sql"), {"sql": "write"})}, now=True)
    return tmp_path / "state"


async def sql(node: Edge, statement: str, *params: str) -> list[Any]:
    body = orjson.dumps({"sql": statement, "params": params})
    async with node.http.post("/functions/sql", data=body) as answer:
        assert answer.status == 200, await answer.text()
        return list((await answer.json(content_type=None)).get("rows", []))


async def write(node: Edge, text: str) -> None:
    await sql(node, "INSERT INTO notes (text) VALUES (?)", text)


async def texts(node: Edge) -> list[str]:
    return [row[0] for row in await sql(node, "SELECT text FROM notes ORDER BY id")]


def rows(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as opened:
        return [row[0] for row in opened.execute("SELECT text FROM notes ORDER BY id")]


async def whole(node: Edge) -> Any:
    """The node's status, once the store has all that it committed."""
    return await node.until(lambda s: s["backup"] and s["backup"]["reached"] and s["backup"]["lag_seconds"] == 0)


async def restored(control: Control, state: str) -> Any:
    """The last restore of the node, once it is in this state."""
    async with deadline(60):
        while True:
            (last, *_) = (await control.call("GET", "nodes/edge-1/restores"))["items"]
            if last["state"] == state:
                return last
            await asyncio.sleep(0.05)


async def spoilt(control: Control, node: Edge) -> Any:
    """Write on a node before and after a release that spoils it; return its status once the store has all of it."""
    await control.until(lambda n: n["at_target"])
    await write(node, "early")
    await whole(node)
    await control.call("POST", "schema-changes", {"name": "more", "sql": MORE})
    await control.release(functions={}, now=True)
    await control.until(lambda n: n["at_target"] and n["schema_version"] == 2)
    await write(node, "late")
    found = await whole(node)
    assert await texts(node) == ["spoilt", "late"]
    return found


async def test_a_node_goes_back_to_before_a_release_and_forth_again(control: Control, state: Path) -> None:
    async with edge(state) as node:
        before = (await spoilt(control, node))["backup"]
        made = await control.call("POST", "nodes/edge-1/restores", {"to": "before:2"})
        told = await restored(control, "held")
        assert told["id"] == made["id"]
        assert await texts(node) == ["early"]
        assert rows(Path(told["kept"])) == ["spoilt", "late"]
        # All that it had is at the store, by the position that brings it back.
        assert told["kept_position"] == f"{before['lineage']}/{before['reached']}"
        # It is held: its group's release isn't planned over what was restored.
        own = await node.until(lambda s: s["restore"]["step"] is None and s["held"])
        assert (own["release"]["number"], own["schema_version"], own["at_target"]) == (1, 1, False)
        assert "\nrelease    1 (generation " in render(own)
        assert "\nat target  no: the node is held at what it brought back" in render(own)
        shown = await control.node()
        assert (shown["standing"], shown["release"], shown["target_release"]) == ("held", 1, 2)
        assert "restored   to the database of " in render(own)
        await write(node, "since")
        after = (await whole(node))["backup"]
        assert after["lineage"] != before["lineage"]
        assert (after["failures"], after["error"]) == (0, None)
        assert (await control.node())["schema_version"] == 1
        # Forth, to what was there before it went back.
        await control.call("POST", "nodes/edge-1/resume")
        await control.until(lambda n: n["at_target"] and n["schema_version"] == 2)
        assert await texts(node) == ["spoilt", "spoilt"]
        await control.call("POST", "nodes/edge-1/restores", {"to": told["kept_position"]})
        await restored(control, "held")
        assert await texts(node) == ["spoilt", "late"]
        await control.call("POST", "nodes/edge-1/resume")
        await control.until(lambda n: n["at_target"])
        await node.until(lambda s: s["at_target"] and not s["held"])
        await write(node, "at last")
    assert len(list(state.glob("db.before-*"))) == 2


async def test_a_lost_disk_takes_nothing_that_was_at_the_store(control: Control, state: Path) -> None:
    async with edge(state) as node:
        await control.until(lambda n: n["at_target"])
        for number in range(5):
            await write(node, f"order {number}")
        lost = await whole(node)
    shutil.rmtree(state)
    token = await control.join_token(rejoin="edge-1")
    where = ("--state", str(state), "--control", control.url, "--name", "edge-1")
    status, out, errors = await command("join", *where, SKERRY_JOIN_TOKEN=token)
    assert status == 0, errors
    assert "Its database is back as it was at 20" in out
    assert "with release 1." in out
    assert not (state / DATA_AWAITED).exists()
    async with edge(state) as node:
        assert await texts(node) == [f"order {number}" for number in range(5)]
        await control.until(lambda n: n["at_target"])
        assert (await node.status())["node"]["id"] == lost["node"]["id"]
        await write(node, "order 5")
        found = await whole(node)
        assert found["backup"]["lineage"] != lost["backup"]["lineage"], "another disk has another history"
