"""Control and nodes of this version and of the one before work together, in either order, and on one database."""

from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.previous import Previous
from tests.support.programs import control_program, edge_program
from tests.support.replica import Site
from tests.upgrades.versions import (
    NEW,
    Releases,
    join,
    migrated,
    told_of_calls,
    told_of_functions,
)


async def test_an_old_node_at_a_new_control_is_upgraded_and_goes_back(
    before: Previous, site: Site, tmp_path: Path
) -> None:
    """The state directory that the new version has used is opened by the old one."""
    await migrated(NEW, site.settings.metadata_url)
    releases, state = Releases(), tmp_path / "edge-1"
    async with control_program(site, tmp_path / "control") as (_, to):
        await join(before.python, to, state, "edge-1")
        for python in (before.python, NEW, before.python):
            async with edge_program(state, python=python) as node:
                if releases.number:
                    # Its release is served at once, before control is asked.
                    await releases.served_by(node)
                await releases.make(to)
                await releases.served_by(node)
                found = await releases.reached(to, "edge-1")
                assert (found["version"] or "").endswith(before.commit[:12]) == (python != NEW)
                await told_of_functions(to, "edge-1")
                await told_of_calls(to, "edge-1")


async def test_a_new_node_at_an_old_control(before: Previous, site: Site, tmp_path: Path) -> None:
    releases, state = Releases(), tmp_path / "edge-1"
    async with control_program(site, tmp_path / "control", python=before.python) as (_, to):
        await join(NEW, to, state, "edge-1")
        async with edge_program(state) as node:
            for _ in range(2):
                await releases.make(to)
                await releases.served_by(node)
            await releases.reached(to, "edge-1")
            await told_of_functions(to, "edge-1")
            await told_of_calls(to, "edge-1")
            # The new schema comes under it, and it goes on.
            await migrated(NEW, site.settings.metadata_url)
            await releases.make(to)
            await releases.served_by(node)
            await releases.reached(to, "edge-1")


async def test_replicas_of_both_versions_beside_each_other(before: Previous, site: Site, tmp_path: Path) -> None:
    """Releases are made at either one, and each node's polls, reports and records come to either one."""
    await migrated(NEW, site.settings.metadata_url)
    # The old version's has nothing to do, as on the way back.
    assert await migrated(before.python, site.settings.metadata_url) == ([], "")
    releases = Releases()
    async with AsyncExitStack() as stack:
        replicas = {
            python: (await stack.enter_async_context(control_program(site, tmp_path / folder, python=python)))[1]
            for folder, python in (("new", NEW), ("old", before.python))
        }
        nodes = {}
        for at, to in replicas.items():
            for python in (NEW, before.python):
                name = f"{'new' if python == NEW else 'old'}-at-{'new' if at == NEW else 'old'}"
                await join(python, to, tmp_path / name, name)
                nodes[name] = await stack.enter_async_context(edge_program(tmp_path / name, python=python))
        for to in (*replicas.values(), *replicas.values()):
            await releases.make(to)
            for name, node in nodes.items():
                await releases.served_by(node)
                for asked in replicas.values():
                    await releases.reached(asked, name)
        for name in nodes:
            for asked in replicas.values():
                await told_of_functions(asked, name)
                await told_of_calls(asked, name)
