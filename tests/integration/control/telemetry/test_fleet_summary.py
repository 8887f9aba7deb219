"""How many nodes stand how: by group, standing, release and cause, and that list, filter, counts and grid agree."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from control.sync.standing import LETTERS, STANDINGS
from control.telemetry import fleet_summary, shared_reading
from tests.support.clock import SetClock
from tests.support.replica import Replica, Site
from tests.support.standings import group, node


async def listed(replica: Replica, query: str = "") -> list[Any]:
    found, after = [], ""
    while True:
        answer = await replica.call("GET", f"/v1/nodes?limit=1000{query}{after}")
        assert answer.status == 200, answer.body
        found += answer.json()["items"]
        if answer.json()["next"] is None:
            return found
        after = f"&cursor={answer.json()['next']}"


async def test_list_filter_counts_and_grid_agree_on_each_combination(control_site: Site) -> None:
    async with control_site.running() as replica:
        await group(replica, "shops", 2, own=1)
        await group(replica, "idle", 0, own=1)
        codes, confirmed = ("", "disk_full", "compile_failed"), (0, 10, 20)
        states = ("online", "offline", "syncing", "revoked")
        both = False, True
        kinds = list(product(("shops", "idle"), states, codes, confirmed, both, (None, 25, 15), both))
        for number, (where, state, code, generation, overdue, own, held) in enumerate(kinds):
            more: Any = {"state": state, "code": code, "confirmed": generation, "overdue": overdue, "held": held}
            if own is not None:
                # An own release, which some of the nodes run; the group's newer one overrides it in one of the groups.
                reached = own if generation == 20 else generation
                more |= {"own": 3 if where == "shops" else 1, "generation": own, "confirmed": reached}
            await node(replica, f"n{number}", where, **more)
        await node(replica, "gone", "shops", code="disk_full", removed=True, overdue=True)
        found = await listed(replica)
        assert len(found) == len(kinds)
        summary = await replica.services.standings.summary()
        assert summary.nodes == len(kinds)
        assert list(summary.standings) == list(STANDINGS)
        assert summary.standings == {s: Counter(n["standing"] for n in found)[s] for s in STANDINGS}
        assert min(summary.standings.values()) > 0
        for seen in summary.groups:
            mine = [n for n in found if n["group"] == seen.name]
            assert seen.standings == {s: Counter(n["standing"] for n in mine)[s] for s in STANDINGS}
            codes_of = Counter(n["error"]["code"] for n in mine if n["standing"] == "failing")
            assert {cause.code: cause.nodes for cause in seen.causes} == codes_of
        for stands in STANDINGS:
            filtered = await listed(replica, f"&standing={stands}")
            assert {n["name"] for n in filtered} == {n["name"] for n in found if n["standing"] == stands}
        ordered = sorted(found, key=lambda n: (STANDINGS.index(n["standing"]), n["name"]))
        assert [n["name"] for n in await listed(replica, "&sort=standing")] == [n["name"] for n in ordered]
        failing = [n for n in found if n["standing"] == "failing" and n["error"]["code"] == "disk_full"]
        assert [n["name"] for n in await listed(replica, "&error=disk_full")] == [n["name"] for n in failing]
        # Nothing is expected of a revoked node, nor of a held one.
        late = {f"n{number}" for number, kind in enumerate(kinds) if kind[4] and kind[1] != "revoked" and not kind[6]}
        assert summary.overdue == len(late)
        assert {n["name"] for n in await listed(replica, "&overdue=true")} == late
        by_name = {n["name"]: n["standing"] for n in found}
        overdue = Counter(by_name[name] for name in late)
        assert sum((Counter(seen.overdue) for seen in summary.groups), Counter()) == overdue
        grid = await replica.services.standings.grid()
        cells = {
            name: LETTERS[letter]
            for seen in grid.groups.values()
            for name, letter in zip(seen.names, seen.letters, strict=True)
        }
        assert cells == by_name


async def test_releases_are_counted_by_the_number_that_nodes_run(control_site: Site) -> None:
    async with control_site.running() as replica:
        await group(replica, "shops", 3)
        await node(replica, "now", "shops", confirmed=30)
        await node(replica, "before", "shops", confirmed=20)
        await node(replica, "long-ago", "shops", confirmed=10)
        await node(replica, "moved-and-there", "shops", confirmed=31, generation=31)
        await node(replica, "moved-and-not-there", "shops", confirmed=29, generation=31)
        await node(replica, "held-there", "shops", confirmed=30, held=True)
        await node(replica, "held-before", "shops", confirmed=20, held=True)
        (shops,) = (await replica.services.standings.summary()).of(["shops"]).groups
        assert shops.release == 3
        assert shops.counts == {
            **{("at_target", 3): 2, ("behind", 2): 1, ("behind", None): 2},
            **{("held", 3): 1, ("held", 2): 1},
        }
        # Nodes that a rollout has started with a release of their own.
        await group(replica, "kiosks", 2, own=1)
        await node(replica, "there", "kiosks", confirmed=40, generation=40, own=3)
        await node(replica, "on-its-way", "kiosks", confirmed=20, generation=40, own=3)
        await node(replica, "overridden", "kiosks", confirmed=20, generation=15, own=3)
        await node(replica, "behind", "kiosks", confirmed=10)
        # A release before the group's that never was it tells nothing.
        await group(replica, "vans", 2)
        await node(replica, "some", "vans", confirmed=10)
        await replica.services.db.transaction(
            lambda conn: conn.execute(
                "INSERT INTO rollouts (release_id, group_id, policy, state, step, step_since, waits_since,"
                " measured_from, made_at) SELECT r.id, g.id, '{}', 'aborted', 1, $1, $1, $1, $1 FROM groups AS g"
                " JOIN releases AS r ON r.group_id = g.id WHERE g.name = 'vans' AND r.number = 1",
                replica.services.clock.now(),
            )
        )
        kiosks, vans = (await _read(replica)).of(["kiosks", "vans"]).groups
        assert kiosks.release == 2
        assert kiosks.counts == {("at_target", 3): 1, ("at_target", 2): 1, ("behind", 2): 1, ("behind", 1): 1}
        assert vans.counts == {("behind", None): 1}


async def _read(replica: Replica) -> fleet_summary.FleetSummary:
    """A reading that nobody has shared."""
    reader = fleet_summary.FleetReader(replica.services.db, replica.services.clock)
    try:
        return await reader.summary()
    finally:
        await reader.stop()


async def test_causes_are_told_with_a_text_and_names_over_all_groups(control_site: Site) -> None:
    async with control_site.running() as replica:
        for name in ("east", "west"):
            await group(replica, name, 1)
        for number in range(7):
            await node(replica, f"e{number}", "east", code="disk_full")
        await node(replica, "w0", "west", code="disk_full")
        await node(replica, "w1", "west", code="compile_failed")
        summary = await replica.services.standings.summary()
        disk, compiling = summary.causes
        assert (disk.code, disk.nodes, disk.groups) == ("disk_full", 8, {"east": 7, "west": 1})
        assert len(disk.examples) == 5
        assert disk.text.endswith(" failed")
        assert (compiling.nodes, compiling.examples, compiling.text) == (1, ("w1",), "w1 failed")
        (west,) = summary.of(["west"]).groups
        assert [(cause.code, cause.nodes) for cause in west.causes] == [("compile_failed", 1), ("disk_full", 1)]


async def test_the_grid_is_ordered_by_group_site_and_name(control_site: Site) -> None:
    async with control_site.running() as replica:
        await group(replica, "west", 1)
        await group(replica, "east", 1)
        await node(replica, "a", "west", site="oslo", confirmed=10)
        await node(replica, "b", "west", site="bergen")
        await node(replica, "c", "west", site="bergen", state="offline")
        await node(replica, "d", "west", confirmed=10, state="syncing")
        grid = await replica.services.standings.grid()
        assert list(grid.groups) == ["default", "east", "west"]
        west = grid.groups["west"]
        assert (west.names, west.letters) == (["d", "b", "c", "a"], "sbot")
        assert (grid.groups["east"].names, grid.groups["east"].letters) == ([], "")
        assert list(grid.of(["east"]).groups) == ["east"]


async def test_numbers_and_the_cells_beside_them_are_of_one_moment(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as replica:
        await group(replica, "shops", 1)
        standings = replica.services.standings
        read = standings._grid._read

        async def late() -> fleet_summary.FleetGrid:
            # A node joins after the summary was read, and before the grid is.
            await standings.summary()
            await node(replica, "late", "shops")
            return await read()

        monkeypatch.setattr(standings._grid, "_read", late)
        summary, grid = await standings.both()
        assert summary.nodes == len(grid.groups["shops"].letters) == 1
        (shops,) = grid.of(["shops"]).summary.groups
        assert shops.nodes == 1
        # Of a large fleet the cells are read more seldom, and the numbers are the newest ones.
        old = replace(grid, read_at=grid.read_at - 2 * fleet_summary.LATE)

        async def kept() -> fleet_summary.FleetGrid:
            return old

        monkeypatch.setattr(standings, "grid", kept)
        await node(replica, "later", "shops")
        summary, grid = await standings.both()
        assert (summary.nodes, len(grid.groups["shops"].letters)) == (2, 1)


async def test_all_who_look_share_one_reading(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as replica:
        standings = replica.services.standings
        assert standings.last is None
        found = await asyncio.gather(*(standings.summary() for _ in range(100)))
        assert all(one is found[0] for one in found)
        assert await standings.summary() is found[0] is standings.last
        clock.advance(shared_reading.LONGEST)
        assert await standings.summary() is not found[0]
