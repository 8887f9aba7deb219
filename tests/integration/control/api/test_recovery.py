"""The metadata were restored from a backup: what nodes run is found from their polls, and counters go on above it."""

import asyncio
from dataclasses import replace

import orjson
import pytest

from control.cli.main import run as cli
from control.protocol import wire
from control.sync.fleet_cache import FleetCache
from tests.support import deploy
from tests.support.backups import Backups
from tests.support.clock import SetClock
from tests.support.control import module
from tests.support.replica import Replica, Site, TestNode

SQL = "CREATE TABLE {} (x)"


async def change(live: Replica, table: str) -> str:
    made = await deploy.ok(live, "POST", "/v1/schema-changes", {"name": table, "sql": SQL.format(table)})
    return str(made["checksum"])


class Skerry:
    """The command line at a replica."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    async def __call__(self, live: Replica, *arguments: str) -> str:
        """What a command prints that must end with success."""
        for name, value in (("URL", live.url), ("TOKEN", live.admin), ("CA", str(live.ca))):
            self._monkeypatch.setenv(f"SKERRY_{name}", value)
        assert await asyncio.to_thread(cli, list(arguments)) == 0
        return self._capsys.readouterr().out


@pytest.fixture
def skerry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Skerry:
    return Skerry(monkeypatch, capsys)


async def test_the_next_release_is_taken_after_a_restore(control_site: Site, backups: Backups, skerry: Skerry) -> None:
    async with control_site.running() as live:
        await deploy.ok(live, "POST", "/v1/groups", {"name": "other"})
        await deploy.push(live, "f", module("1"))
        await change(live, "a")
        await deploy.release(live, functions={"f": 1})
        nodes = [await live.join(name) for name in ("ahead", "quiet")]
        nodes.append(await live.join("elsewhere", "other"))
        for node in nodes[:2]:
            await node.sync()
    backup = await backups.take()
    async with control_site.running() as live:
        nodes = [replace(node, replica=live) for node in nodes]
        second = await change(live, "b")
        sha256 = (await deploy.push(live, "f", module("2")))["sha256"]
        for number in (2, 1, 2, 1):
            await deploy.release(live, functions={"f": number})
        plan = await deploy.release(live, functions={"f": 2})
        for node in nodes[:2]:
            assert (await node.sync()).generation == plan["generation"] == nodes[0].generation

    await backups.restore(backup)
    async with control_site.running() as live:
        ahead, quiet, elsewhere = (replace(node, replica=live) for node in nodes)
        # As it says what it runs, control plans what it knows, which the node refuses.
        assert (await ahead.ask(report=True)).status == 409, "it has schema changes that aren't registered"
        assert (await elsewhere.ask(report=True)).status == 204
        said = orjson.loads(await skerry(live, "recover", "--json"))
        assert (said["recovered"], said["generation"], said["jump_to"]) == (False, 1, plan["generation"])
        assert said["ahead"] == [{"name": "default", "nodes": 1, "generation": plan["generation"]}]
        assert said["later_versions"] == [{"name": "f", "known": 1, "version": 2}]
        [version] = said["unknown_versions"]
        assert (version["name"], version["version"], version["sha256"]) == ("f", 2, sha256)
        assert (version["nodes"], version["node"], version["after_backup"]) == (1, "ahead", True)
        [unknown] = said["unknown_changes"]
        assert (unknown["number"], unknown["checksum"], unknown["registered"]) == (2, second, False)
        assert [(group["name"], group["nodes"]) for group in said["behind"]] == [("default", 1)]
        assert said["nodes"] == 3
        assert said["store"]["unknown"] == 1, "the bytes of f@2"
        text = await skerry(live, "recover")
        assert "f@2 (made after the backup) runs on 1 node, such as ahead" in text
        assert "`skerry recover --yes` does it" in text
        assert orjson.loads(await skerry(live, "recover", "--json"))["generation"] == 1, "nothing was changed"

        assert "the metadata were restored" in await skerry(live, "status")
        text = await skerry(live, "recover", "--yes")
        assert "control was at 1 and goes on above" in text
        [entry] = (await live.call("GET", "/v1/audit?action=metadata.recover")).json()["items"]
        assert (entry["before"]["generation"], entry["after"]["generation"]) == (1, plan["generation"])
        assert entry["after"]["last_versions"] == {"f": 2}
        # By hand: the change and the version are there again, under a number that nothing else had.
        assert await change(live, "b") == second
        assert (await deploy.push(live, "f", module("2")))["version"] == 3
        made = await deploy.release(live, functions={"f": 3})
        assert made["generation"] == plan["generation"] + 1
        for node in (ahead, quiet):
            assert (await node.ask(report=True)).status == 200
            assert (await node.sync()).generation > plan["generation"]
        assert "the metadata were restored, as" not in await skerry(live, "status")
        said = orjson.loads(await skerry(live, "recover", "--json"))
        assert (said["jump_to"], said["restored_at"]) == (None, None)
        assert (said["later_versions"], said["unknown_versions"], said["unknown_changes"]) == ([], [], [])
        assert said["behind"] == []


async def test_a_node_at_its_target_tells_its_generation_once(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it runs is what the restored release has, so nothing but its generation shows that it is ahead."""
    async with control_site.running() as live:
        await deploy.push(live, "f", module("1"))
        await deploy.release(live, functions={"f": 1})
        node = await live.join("one")
        await node.sync()
        assert (await node.ask()).status == 204
        node.generation = 9
        assert (await node.ask()).status == 204
        found = await deploy.ok(live, "GET", "/v1/recovery")
        assert (found["jump_to"], found["ahead"][0]["generation"]) == (9, 9)
        # From then on its polls are answered from memory again.
        assert _is_known(live.services.fleet, node)
        await deploy.ok(live, "POST", "/v1/recovery")
        assert (await deploy.release(live, functions={}, remove=["f"]))["generation"] == 10
        assert (await node.sync()).generation == 10


def _is_known(fleet: FleetCache, node: TestNode) -> bool:
    poll = wire.Poll(node.generation, wire.digest(node.inventory))
    return fleet.at_target(fleet.nodes[node.id], poll)


async def test_a_node_is_not_believed_numbers_that_would_use_all_up(control_site: Site) -> None:
    async with control_site.running() as live:
        await deploy.push(live, "f", module("1"))
        await deploy.release(live, functions={"f": 1})
        node, other = await live.join("liar"), await live.join("other")
        node.generation = 2**62
        node.inventory = wire.Inventory(
            database_id=node.inventory.database_id,
            functions=[wire.RunningFunction("f", 2**31 - 1, "0" * 64, "0" * 64)],
        )
        assert (await node.ask(report=True)).status == 200
        other.generation = 5
        assert (await other.ask(report=True)).status == 200
        found = await deploy.ok(live, "POST", "/v1/recovery")
        assert found["jump_to"] == 5
        assert found["not_believed"] == [{"name": "liar", "generation": 2**62}]
        assert found["later_versions"] == []
        assert (await deploy.push(live, "f", module("2")))["version"] == 2
        assert (await deploy.release(live, functions={"f": 2}))["generation"] == 6


async def test_recovering_again_changes_nothing(control_site: Site) -> None:
    async with control_site.running() as live:
        for _ in range(2):
            found = await deploy.ok(live, "POST", "/v1/recovery")
            assert (found["jump_to"], found["generation"]) == (None, 0)
        entries = (await live.call("GET", "/v1/audit?action=metadata.recover")).json()["items"]
        assert [(entry["before"], entry["after"]) for entry in entries] == [({}, {})] * 2


async def test_what_a_person_has_to_do_is_said_in_words(control_site: Site, skerry: Skerry) -> None:
    """Of nodes that have another text, aren't at their target or tell nonsense, and of credentials that aren't good."""
    async with control_site.running() as live:
        await deploy.push(live, "f", module("1"))
        await change(live, "a")
        await deploy.release(live, functions={"f": 1}, schema=1)
        other, liar, gone, stolen = [await live.join(name) for name in ("other", "liar", "gone", "stolen")]
        for node, generation in ((other, 0), (liar, 2**62), (gone, 9)):
            node.generation = generation
        other.inventory = wire.Inventory(1, [wire.AppliedChange(1, 1, "a" * 64)], [], other.inventory.database_id)
        assert (await other.ask(report=True)).status == 409
        for node in (liar, gone):
            assert (await node.ask(report=True)).status == 200
        await deploy.ok(live, "DELETE", "/v1/nodes/gone")
        await deploy.ok(live, "POST", "/v1/nodes/stolen/revoke")
        assert (await stolen.ask()).status == 401
        await live.services.failures.flush()
        found = orjson.loads(await skerry(live, "recover", "--json"))
        assert found["jump_to"] is None, "a node that was removed counts no more"
        [unknown] = found["unknown_changes"]
        assert (unknown["number"], unknown["checksum"], unknown["registered"]) == (1, "a" * 64, True)
        text = " ".join((await skerry(live, "recover")).split())
        for said in (
            "nodes were heard of in the last minute",
            "schema change 1, with another text than the registered one, is on 1 node, such as other: look at which",
            "of default don't run its release 1: make a new release",
            f"node liar says that it completed generation {2**62}, which can't be: look at that machine",
            "127.0.0.1 was refused 1 time with credentials that are revoked",
        ):
            assert said in text, text


async def test_only_nodes_that_were_heard_of_since_count_as_heard(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as live:
        for name in ("one", "two"):
            assert (await (await live.join(name)).ask(report=True)).status == 204
        three = await live.join("three")
        await live.services.heartbeats.flush()
        clock.advance(120)
        assert (await three.ask(report=True)).status == 204
        await live.services.heartbeats.flush()
        found = await deploy.ok(live, "GET", "/v1/recovery")
        assert (found["nodes"], found["unheard"]) == (3, 2)
