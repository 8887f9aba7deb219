"""`skerry rollout`, `release rehearse` and `group policy`, with a real replica and simulated nodes."""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import programs, seeds
from tests.support.deadlines import deadline
from tests.support.programs import until
from tests.support.replica import Replica, Site
from tests.support.simulated_nodes import Nature, SimulatedNodes
from tests.support.terminals import LIMIT, in_terminal

pytestmark = pytest.mark.background("rollouts")

STEPS = """
[rollout]
steps = ["1", { pause = "approval" }, "100%"]
bake = "0s"
rehearse = false
"""


@dataclass
class Fleet:
    """A replica and its nodes, and the commands of an admin."""

    replica: Replica
    nodes: SimulatedNodes
    err: str = ""
    """What the last command said on stderr."""

    async def __call__(self, *arguments: str | Path, ends: int = 0) -> str:
        """Run a command, which must end with this exit code; return what it printed, to stdout or, refused, stderr."""
        done = await programs.skerry(self.replica, *arguments)
        assert done.status == ends, (arguments, done)
        self.err = done.err
        return done.out.decode()

    async def json(self, *arguments: str | Path, ends: int = 0) -> Any:
        """Run a command with --json, and return its document."""
        return json.loads(await self(*arguments, "--json", ends=ends))

    async def at_release(self, number: int, *names: str) -> None:
        """Wait until these nodes, or all, run the release, and control knows it."""

        async def there() -> bool:
            self.nodes.check()
            seen = [await self.replica.node(name) for name in names or self.nodes.nodes]
            return all(node["at_target"] and self.nodes.nodes[node["name"]].release == number for node in seen)

        await until(there, f"{names or 'all'} are at release {number}")

    async def without_extra(self) -> bool:
        """Return whether all nodes are at their target, and none has the function `extra`."""
        seen = [await self.replica.node(name) for name in self.nodes.nodes]
        return all(node["at_target"] and [f["name"] for f in node["functions"]] == ["hello"] for node in seen)

    def releases(self) -> list[int]:
        """Return the releases that the nodes run."""
        return sorted(node.release for node in self.nodes.nodes.values())


@pytest.fixture
async def skerry(control_site: Site) -> AsyncIterator[Fleet]:
    """Three nodes that run release 1, with the function `hello`; there are others."""
    async with control_site.running() as replica:
        nodes = SimulatedNodes(Nature(sync_seconds=0.0), replica.session, [replica.url])
        try:
            for name in ("a", "b", "c"):
                token = (await replica.call("POST", "/v1/join-tokens", {})).json()["token"]
                await nodes.add(name, token)
            await seeds.release(replica, functions={"hello": await seeds.function(replica, "hello")})
            for name in ("extra", "more"):
                await seeds.function(replica, name)
            fleet = Fleet(replica, nodes)
            await fleet.at_release(1)
            yield fleet
            nodes.check()
        finally:
            await nodes.end()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A file with steps."""
    file = tmp_path / "rollout.toml"
    file.write_text(STEPS)
    return file


async def test_a_release_that_fails_on_a_row_is_rehearsed_shown_and_dropped(skerry: Fleet) -> None:
    skerry.nodes.nature.unfit["b", 1] = "orders id=7"
    await seeds.schema_change(skerry.replica, 1, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    said = await skerry("release", "rehearse", "--schema", "1", ends=5)
    assert re.search(r"failed on 1 node\n.*\n.*\nb .*orders id=7", said), said
    assert "passed on 2 nodes" in said
    assert re.search(r"paused at rehearsal: .*: b: .*\(row orders id=7\) .*\[rehearsal_not_passed\]", skerry.err)
    assert "`skerry rollout abort default` drops it" in skerry.err
    assert skerry.releases() == [1, 1, 1]

    standing = "paused at rehearsal: the rehearsal failed on 1 node of 3"
    assert f"functions hello@1\n  rollout of release 2: {standing}\n" in await skerry("status")
    shown = await skerry("rollout", "status")
    assert "release 2 of group default" in shown
    assert re.search(r"rehearsal +2 passed, 1 failed, 0 unknown", shown)
    assert standing in shown
    (failed,) = await skerry.json("rollout", "status", "--rehearsal", "failed")
    assert (failed["name"], failed["row"]) == ("b", "orders id=7")

    # They go past a failure, or take it away: a script has to say so.
    for act in ("resume", "promote", "abort", "rollback"):
        await skerry("rollout", act, ends=2)
        assert "--yes" in skerry.err
    assert "3 nodes that weren't started yet don't get it" in await skerry("rollout", "abort", "--plan")
    assert (await skerry.json("rollout", "status"))["state"] == "paused"
    assert "aborted: no good" in await skerry("rollout", "abort", "--yes", "--reason", "no good")
    assert skerry.releases() == [1, 1, 1]
    await skerry("rollout", "abort", "--yes", ends=3)
    assert "[rollout_not_possible" in skerry.err
    await skerry("rollout", "status", "--follow", ends=5)
    assert "aborted: no good [rollout_not_done]" in skerry.err


async def test_a_release_that_was_rehearsed_goes_out_when_it_is_resumed(skerry: Fleet) -> None:
    await seeds.schema_change(skerry.replica, 1, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    made = await skerry.json("release", "rehearse", "--schema", "1")
    assert [node["outcome"] for node in made["rehearsal"]] == ["passed"] * 3
    assert (made["rollout_status"]["state"], made["rollout_status"]["waits_for"]) == ("paused", "rehearsed")
    assert skerry.releases() == [1, 1, 1]
    await skerry("rollout", "resume")
    assert "done" in await skerry("rollout", "status", "--follow")
    await skerry.at_release(2)


async def test_a_release_with_a_policy_goes_out_by_its_steps(skerry: Fleet, policy: Path) -> None:
    create = ("release", "create", "--set", "extra=1", "--policy", policy)
    assert "it goes out in 3 steps: 1, pause approval, 100%" in await skerry(*create, "--plan")
    assert (await skerry.json("release", "list", "--limit", "1"))[0]["number"] == 1
    said = await skerry(*create, "--wait", ends=5)
    assert "it goes out in 3 steps" in said
    assert said.count("runs release 2 of group default after") == 1
    assert "isn't everywhere: step 2 of 3: it waits for an operator" in skerry.err
    assert "`skerry rollout promote default` approves it" in skerry.err
    assert skerry.releases() == [1, 1, 2]
    shown = await skerry("rollout", "status")
    assert re.search(r"^1 +1 +passed +1 +1 ", shown, re.MULTILINE), shown
    (there,) = await skerry.json("rollout", "status", "--nodes", "at_target")
    assert there["step"] == 1
    assert len(await skerry.json("rollout", "status", "--nodes", "waiting")) == 2
    assert there["name"] in await skerry("rollout", "status", "--nodes")

    assert "paused at step 2 of 3: lunch" in await skerry("rollout", "pause", "--reason", "lunch")
    await skerry("rollout", "resume")
    await skerry("rollout", "promote")
    assert (await skerry.json("rollout", "status", "--follow"))["state"] == "done"
    await skerry.at_release(2)
    assert re.search(r"default +2 +done .* 3 of 3 ", await skerry("rollout", "list"))


async def test_an_aborted_rollout_is_tried_again_and_rolled_back(skerry: Fleet, policy: Path) -> None:
    await skerry("release", "create", "--set", "extra=1", "--policy", policy, "--wait", ends=5)
    assert "1 node that runs release 2 keep it" in await skerry("rollout", "abort", "--plan")
    await skerry("rollout", "abort", "--yes")
    assert skerry.releases() == [1, 1, 2]
    assert "attempt 2" in await skerry("rollout", "retry", "--plan")
    await skerry("rollout", "retry")
    assert "attempt 2" in await skerry("rollout", "status")
    await skerry("rollout", "rollback", "--yes", "--reason", "worse")
    # The others ran the same as before all along.
    await until(skerry.without_extra, "no node runs release 2")
    assert "rolled back" in await skerry("rollout", "status", "--number", "2")
    assert (await skerry.json("release", "list", "--limit", "1"))[0]["rollback_to"] == 1


async def test_a_groups_policy_is_set_shown_and_taken_away(skerry: Fleet, policy: Path, tmp_path: Path) -> None:
    assert "group default has no policy" in await skerry("group", "policy", "default")
    await skerry("group", "policy", "default", policy)
    again = tmp_path / "again.toml"
    again.write_text(await skerry("group", "policy", "default"))
    before = await skerry.json("group", "policy", "default")
    await skerry("group", "policy", "default", again)
    assert await skerry.json("group", "policy", "default") == before
    assert "goes out in 3 steps" in await skerry("release", "create", "--plan")
    # All but one node wait for the approval; without steps, none does.
    await skerry("release", "create", "--set", "extra=1", "--wait", ends=5)
    assert skerry.releases() == [1, 1, 2]
    assert "it goes to all nodes at once" in await skerry("release", "create", "--set", "more=1", "--now", "--wait")
    assert skerry.releases() == [3, 3, 3]
    assert "superseded" in await skerry("rollout", "status", "--number", "2")
    await skerry("group", "policy", "default", "--none")
    assert (await skerry.json("group", "policy", "default"))["policy"] is None
    await skerry("release", "create", "--remove", "more", "--wait")
    assert skerry.releases() == [4, 4, 4]
    # Who doesn't wait is told where it is shown.
    said = await skerry("release", "rehearse", "--set", "more=1", "--no-wait")
    assert "`skerry rollout status default --rehearsal`" in said.splitlines()[-1]
    await skerry("rollout", "abort", "--yes")
    said = await skerry("release", "create", "--set", "more=1", "--policy", policy)
    assert "`skerry rollout status default`" in said.splitlines()[-1]


async def test_a_rollout_is_redrawn_in_a_terminal_until_it_ends(skerry: Fleet, policy: Path) -> None:
    await skerry("release", "create", "--set", "extra=1", "--policy", policy, "--wait", ends=5)
    to = {"SKERRY_URL": skerry.replica.url, "SKERRY_TOKEN": skerry.replica.admin, "SKERRY_CA": str(skerry.replica.ca)}
    async with in_terminal(to, "rollout", "status", "--follow") as terminal:
        await terminal.until("step 2 of 3: it waits for an operator", "`skerry rollout promote default` approves it")
        terminal.forget()
        await terminal.until("step 2 of 3: it waits for an operator")
        terminal.forget()
        await skerry("rollout", "promote")
        await terminal.until("3 at target", "done (")
        async with deadline(LIMIT):
            assert await terminal.process.wait() == 0
        assert "Traceback" not in terminal.shown


async def test_a_group_without_a_rollout(skerry: Fleet) -> None:
    await skerry("rollout", "status", ends=1)
    assert "group default has no rollout" in skerry.err
    assert await skerry.json("rollout", "list") == []
    await skerry("rollout", "status", "nowhere", ends=3)
    assert "unknown_group" in skerry.err
