"""Operators see which revision of an amended schema change each node has."""

import asyncio
from typing import Any

import orjson
import pytest

from control.cli.main import run as cli
from control.storage.connection import AsyncpgConnection
from control.sync import applied_revisions
from tests.support import seeds
from tests.support.replica import Site


async def test_a_node_that_has_an_older_revision_is_told(
    control_site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with control_site.running() as replica:
        early, late, removed = [await replica.join(name) for name in ("early", "late", "removed")]
        await seeds.schema_change(replica, 1, "CREATE TABLE a (id INTEGER)")
        await seeds.schema_change(replica, 2, "CREATE TABLE b (id INTEGER)")
        await seeds.release(replica, schema=2)
        await early.sync()
        await removed.sync()
        await seeds.schema_change(replica, 2, "CREATE TABLE b (id INTEGER);", revision=2)
        await late.sync()
        assert (await replica.call("DELETE", "/v1/nodes/removed")).status == 204

        assert (await replica.node("early"))["older_revisions"] == [{"number": 2, "revision": 1, "newest": 2}]
        assert (await replica.node("late"))["older_revisions"] == []
        listed = (await replica.call("GET", "/v1/schema-changes")).json()["items"]
        both, either = [{"revision": 1, "nodes": 2}], [{"revision": 1, "nodes": 1}, {"revision": 2, "nodes": 1}]
        assert [change["nodes"] for change in listed] == [both, either]
        assert (await replica.call("GET", "/v1/schema-changes/2")).json()["nodes"] == either

        monkeypatch.setenv("SKERRY_URL", replica.url)
        monkeypatch.setenv("SKERRY_CA", str(replica.ca))
        monkeypatch.setenv("SKERRY_TOKEN", replica.admin)

        async def said(*arguments: str) -> str:
            assert await asyncio.to_thread(cli, list(arguments)) == 0
            return capsys.readouterr().out

        assert "change 2 in revision 1; the newest is 2" in await said("node", "show", "early")
        assert "in revision" not in await said("node", "show", "late")
        assert "1, 1 with revision 1" in await said("schema", "list")
        assert "1, 1 with revision 1" in await said("schema", "show", "2")
        assert orjson.loads(await said("schema", "list", "--json"))[1]["nodes"] == either


async def test_a_page_counts_for_its_own_changes_alone(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each amended change all nodes are read: a list of many would take longer than a statement may."""
    asked = []
    real = AsyncpgConnection.fetch

    async def fetch(self: AsyncpgConnection, query: Any, *given: Any) -> Any:
        if query is applied_revisions.REVISIONS:
            asked.append(given)
        return await real(self, query, *given)

    monkeypatch.setattr(AsyncpgConnection, "fetch", fetch)
    async with control_site.running() as replica:
        for number in (1, 2, 3):
            for revision in (1, 2):
                sql = f"CREATE TABLE t{number} (id INTEGER)" + ";" * revision
                await seeds.schema_change(replica, number, sql, revision=revision)
        page = (await replica.call("GET", "/v1/schema-changes?limit=1")).json()
        assert [change["number"] for change in page["items"]] == [1]
        assert asked == [(1,)]
