"""Replicas, the database and nodes are killed at each step of rehearsals and rollouts, of good releases and bad ones.

Whatever is killed, no more nodes are started than the step allows and none after a failure, the rollout goes on by
itself, one that has ended stays ended, and each node runs one whole release. SKERRY_TEST_KILLS says how many kills,
SKERRY_TEST_SEED repeats a run's order.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import orjson
import pytest

from control.clock import SystemClock
from control.protocol.manifest import Manifest
from control.storage import database
from tests.guests.version import version as module
from tests.support import seeds
from tests.support.deadlines import deadline, scaled
from tests.support.fleet import Fleet, fleet
from tests.support.simulated_nodes import Nature

KILLS = int(os.environ.get("SKERRY_TEST_KILLS", "5"))
SEED = int(os.environ.get("SKERRY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
SIMULATED = 12
NODES = SIMULATED + 1
"""With one real edge."""
STEPS = ["1", "40%", "100%"]
ALLOWED = [0, 1, ceil(0.4 * NODES), NODES]
"""The most nodes that may be started, by step."""
ENDED = {"done", "aborted", "superseded", "rolled_back"}
LIMIT = 90.0
"""Seconds within which a rollout must go on: with a restart, and the lease of a replica that was killed."""
PERIOD = 0.03
"""Seconds between two looks at what must always be so."""
VICTIMS = ("before", "after", "replicas", "database", "nodes", "all")
"""Who is killed: the replica that carries rollouts on, before or after its COMMIT, and then the other one; both at
once; the database; half of the simulated nodes and the edge; all of these."""
KINDS = ("done", "rolled_back", "rehearsal", "aborted")
"""How rollouts end: as a good release; by a failure in a step, with rollback; paused by the rehearsal; paused by a
failure in a step, and then aborted."""
LOOK = """
SELECT r.number::int AS number, o.state, o.step::int AS step, o.waits_for, o.attempt::int AS attempt,
    array(SELECT k.node_id::text FROM rollout_nodes AS k WHERE k.release_id = o.release_id) AS started
FROM rollouts AS o JOIN releases AS r ON r.id = o.release_id
"""


class Seen(NamedTuple):
    """A rollout, in one moment."""

    number: int
    state: str
    step: int
    waits_for: str
    attempt: int
    started: frozenset[str]


@dataclass
class Watched:
    """What was seen of all rollouts, and all that must never be so."""

    fleet: Fleet
    task: asyncio.Task[None] | None = None
    """Which looks."""
    last: dict[int, Seen] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    taken_back: set[int] = field(default_factory=set)
    """Schema versions whose functions were taken back from nodes that ran them: their schema stays."""
    operated: set[int] = field(default_factory=set)
    """Releases whose rollouts operators let go on, and begin again."""
    stayed: dict[int, int] = field(default_factory=dict)
    """By release: how many nodes had it when its rollout was begun again."""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                connection = await asyncpg.connect(self.fleet.services.metadata_url, timeout=5)
                try:
                    while True:
                        await self._look(connection)
                        await asyncio.sleep(PERIOD)
                finally:
                    connection.terminate()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError):
                # The database was killed.
                await asyncio.sleep(PERIOD)

    async def _look(self, connection: Any) -> None:
        # First what nodes run: who runs a release was started before.
        runs = {(node.release, node.id) for node in self.fleet.simulated.nodes.values()}
        for row in await connection.fetch(LOOK):
            values = dict(row)
            seen = Seen(**{**values, "started": frozenset(values["started"])})
            before = self.last.get(seen.number)
            self.last[seen.number] = seen
            self._check(seen, before, {id for number, id in runs if number == seen.number})

    def _check(self, seen: Seen, before: Seen | None, runs: set[str]) -> None:
        if before is not None and seen.attempt > before.attempt:
            self.stayed[seen.number] = len(before.started & seen.started)
        most = max(ALLOWED[seen.step], self.stayed.get(seen.number, 0))
        if len(seen.started) > most:
            self.broken.append(f"{len(seen.started)} nodes are started, {most} is the most: {seen}")
        if seen.state not in ENDED and not runs <= seen.started:
            self.broken.append(f"nodes run it that weren't started: {runs - seen.started}: {seen}")
        if before is None:
            return
        if seen.attempt > before.attempt and seen.number in self.operated:
            return
        if before.state in ENDED and seen.state != before.state:
            self.broken.append(f"it had ended: {before}, and now {seen}")
        resumed = seen.state == "running" and seen.number in self.operated
        if before.state == "paused" and not resumed and not seen.started <= before.started:
            self.broken.append(f"nodes were started while it was paused: {before}, and now {seen}")
        # At an abort, those that don't run it yet go back, and haven't been started then.
        if seen.state not in ENDED and not before.started <= seen.started:
            self.broken.append(f"nodes are forgotten: {before}, and now {seen}")
        if (seen.attempt, seen.step) < (before.attempt, before.step):
            self.broken.append(f"it went back: {before}, and now {seen}")

    def check(self) -> None:
        """Fail if anything was so that must never be."""
        if self.task is not None and self.task.done():
            self.task.result()
        if self.broken:
            raise self.fleet.failure("\n".join(self.broken[:5]))
        for node in self.fleet.simulated.nodes.values():
            if node.inventory.functions:
                (function,) = node.inventory.functions
                self.whole(node.name, function.version, node.inventory.schema_version)
        self.fleet.simulated.check()

    def whole(self, name: str, version: int, schema: int) -> None:
        """Fail if a node runs a version of the function with a schema that no release has it with."""
        if version != schema and not (version < schema and schema in self.taken_back):
            raise self.fleet.failure(f"{name} runs version {version} on schema {schema}: that is half a release")


class Killer:
    """Kills, and starts again what nobody else does."""

    def __init__(self, made: Fleet, watched: Watched, chance: random.Random) -> None:
        self.left = KILLS
        self.places: set[tuple[int, str, str]] = set()
        """Step, what the rollout waited for, and who was killed."""
        self._fleet = made
        self._watched = watched
        self._chance = chance
        self._victims: list[str] = []

    async def kill(self, seen: Seen) -> None:
        """Kill somebody, at this place of a rollout; return when all of them run again."""
        if not self._victims:
            self._victims = list(VICTIMS)
            self._chance.shuffle(self._victims)
        # If one was killed at this place before, another.
        victim = next(
            (each for each in self._victims if (seen.step, seen.waits_for, each) not in self.places), self._victims[0]
        )
        self._victims.remove(victim)
        self.left -= 1
        self.places.add((seen.step, seen.waits_for, victim))
        print(f"{KILLS - self.left:4}  release {seen.number}, step {seen.step} {seen.waits_for}: {victim}")
        await self.kill_them(victim)
        self._watched.check()

    async def kill_them(self, victim: str) -> None:
        made = self._fleet
        if victim in ("before", "after"):
            made.arm(f"control.rollout.{victim}", "kill")
            try:
                # The replica may be on its way to its end: then there is nothing to carry on.
                await made.reached(f"control.rollout.{victim}", limit=LIMIT)
            finally:
                made.disarm()
        if victim in ("before", "after", "replicas", "all"):
            for replica in made.replicas:
                replica.kill()
        if victim in ("nodes", "all"):
            names = self._chance.sample(sorted(made.simulated.nodes), SIMULATED // 2)
            for name in names:
                made.simulated.kill(name)
            for edge in made.edges.values():
                edge.program.kill()
            await asyncio.sleep(self._chance.uniform(0, 0.5))
            for name in names:
                made.simulated.start(name)
        if victim in ("database", "all"):
            await made.services.metadata.kill()
            await made.services.metadata.start()


@pytest.mark.timeout(600 + KILLS * 30)
async def test_rollouts_go_on_whatever_is_killed() -> None:
    print(f"SKERRY_TEST_KILLS={KILLS} SKERRY_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    nature = Nature(sync_seconds=0.2, rehearsal_seconds=0.5, calls=5.0)
    async with fleet(edges=1, nature=nature) as made, watching(made) as watched:
        await seed(made, KILLS * 2 + 4)
        await made.add_simulated([f"sim-{number}" for number in range(SIMULATED)])
        first = await made.release({"version": 1}, schema=1, now=True)
        await made.at_release(first, nodes=NODES)
        killer = Killer(made, watched, chance)
        number = 1
        kinds = list(KINDS)
        while killer.left > 0:
            number += 1
            began = time.monotonic()
            kind = kinds[(number - 2) % len(kinds)]
            await roll_out(made, watched, killer, kind, number)
            watched.check()
            print(f"      {time.monotonic() - began:5.1f} s  version {number} ended: {kind}")
        ended = [seen for seen in watched.last.values() if seen.state in ENDED]
        assert len(ended) == len(watched.last), watched.last
        watched.check()


@pytest.mark.timeout(600 + KILLS * 30)
async def test_acts_of_operators_take_effect_once_whatever_is_killed() -> None:
    print(f"SKERRY_TEST_KILLS={KILLS} SKERRY_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    nature = Nature(rehearsal_seconds=0.1, calls=5.0)
    async with fleet(nature=nature) as made, watching(made) as watched:
        # Each round kills up to 9 times.
        await seed(made, KILLS // 2 + 4)
        await made.add_simulated([f"sim-{number}" for number in range(SIMULATED)])
        await made.at_release(await made.release({"version": 1}, schema=1, now=True), nodes=SIMULATED)
        killer = ActKiller(made, watched, chance)
        version = 1
        while killer.left > 0:
            version += 1
            await operate(killer, version, "abort" if version % 2 else "rollback")
        watched.check()


class ActKiller:
    """Acts as an operator, while both replicas are killed before or after the COMMIT of some acts."""

    def __init__(self, made: Fleet, watched: Watched, chance: random.Random) -> None:
        self.left = max(2, KILLS // 4)
        self.fleet = made
        self.watched = watched
        self._chance = chance
        self._moments: dict[str, str] = {}
        """When the replica was killed last, by act."""

    async def act(self, release: int, name: str, *, state: str, always: bool = False) -> Any:
        """Have a rollout be acted upon, and fail unless that takes effect once. `always`: kill, if any kill is left."""
        made, path = self.fleet, f"/v1/rollouts/default/{release}/{name}"
        if self.left > 0 and (always or self._chance.random() < min(1.0, KILLS / 20)):
            self.left -= 1
            last = self._moments.get(name) or self._chance.choice(("before", "after"))
            moment = self._moments[name] = "before" if last == "after" else "after"
            print(f"{self.left:4} left: release {release}, {name}, {moment}")
            made.arm(point := f"control.rollout.act.{moment}", "kill")
            asking = asyncio.create_task(made.call("POST", path, {}))
            try:
                await made.reached(point)
            finally:
                made.disarm()
            for replica in made.replicas:
                replica.kill()
            shown = await asking
        else:
            shown = await made.call("POST", path, {})
        assert shown["state"] == state, shown
        self.watched.check()
        return shown

    async def once(self, release: int, wanted: dict[str, int]) -> None:
        """Fail unless the audit log has each act on a rollout as often as it was asked for."""
        entries = await self.fleet.items(f"/v1/audit?target=default/{release}")
        found = Counter(each["action"].removeprefix("rollout.") for each in entries)
        assert {name: found[name] for name in wanted} == wanted, entries


async def operate(killer: ActKiller, version: int, last: str) -> None:
    """Do all that operators do to the rollout of a version; `last` ends it when it is stuck."""
    made, watched = killer.fleet, killer.watched
    nature = made.simulated.nature
    nature.unfit.clear()
    watched.taken_back.add(version)
    policy = {"steps": STEPS, "bake": "1h", "rehearsal_time": "60s"}
    release = await made.release({"version": version}, schema=version, rollout=policy)
    watched.operated.add(release)

    async def stands(state: str, step: int, waits_for: str) -> None:
        async def there() -> bool:
            watched.check()
            seen = watched.last.get(release)
            return seen is not None and (seen.state, seen.step, seen.waits_for) == (state, step, waits_for)

        what = f"release {release} is {state} in step {step} and waits for {waits_for}"
        await made.until(what, there, lambda: watched.last.get(release), limit=LIMIT)

    await stands("running", 1, "baking")
    await killer.act(release, "pause", state="paused")
    await killer.act(release, "resume", state="running")
    await killer.act(release, "promote", state="running")
    await stands("running", 2, "baking")
    await killer.act(release, "abort", state="aborted")
    shown = await killer.act(release, "retry", state="running")
    assert shown["attempt"] == 2, shown
    await stands("running", 1, "baking")
    later = [node.name for node in made.simulated.nodes.values() if node.inventory.schema_version != version]
    nature.unfit.update({(name, version): "orders id=8" for name in later})
    # Those of the first two steps have it still.
    await killer.act(release, "promote", state="running")
    await stands("running", 2, "baking")
    await killer.act(release, "promote", state="running")
    await stands("paused", 3, "failed")
    await killer.act(release, last, state="aborted" if last == "abort" else "rolled_back", always=True)
    nature.unfit.clear()
    wanted = Counter(["pause", "resume", *3 * ["promote"], "abort", "retry", last])
    await killer.once(release, wanted)


async def roll_out(made: Fleet, watched: Watched, killer: Killer, kind: str, version: int) -> None:
    """Roll a version of the function out, with a schema change, to its end; kill at each new place."""
    nature = made.simulated.nature
    nature.unfit.clear()
    if kind == "rehearsal":
        nature.unfit[f"sim-{version % SIMULATED}", version] = "orders id=7"
    policy: dict[str, Any] = {"steps": STEPS, "bake": "1s", "rehearsal_time": "60s"}
    if kind == "rolled_back":
        policy["on_failure"] = "rollback"
    if kind in ("rolled_back", "aborted"):
        watched.taken_back.add(version)
    release = await made.release({"version": version}, schema=version, rollout=policy)
    places: set[tuple[int, str]] = set()

    def spoil(seen: Seen) -> None:
        """Have the release fail on nodes that aren't started yet, though they have rehearsed it well."""
        if kind in ("rolled_back", "aborted") and seen.step == 1 and seen.started and not nature.unfit:
            later = [node for node in made.simulated.nodes.values() if node.id not in seen.started]
            nature.unfit.update({(node.name, version): "orders id=8" for node in later})

    while True:
        seen = await next_place(watched, release, places, spoil)
        if seen.state != "running":
            break
        places.add((seen.step, seen.waits_for))
        if killer.left > 0:
            await killer.kill(seen)
    if kind in ("rehearsal", "aborted"):
        assert (seen.state, seen.waits_for, seen.step) == ("paused", "failed", 0 if kind == "rehearsal" else 2), seen
        if killer.left > 0:
            await killer.kill_them("replicas")
        await made.call("POST", f"/v1/rollouts/default/{release}/abort", {}, refused="rollout_not_possible")
        seen = await ended(watched, release)
        kind = "aborted"
    assert seen.state == kind, seen
    nature.unfit.clear()
    await settled(made, watched, version if kind == "done" else 0)


async def next_place(
    watched: Watched, release: int, places: set[tuple[int, str]], spoil: Callable[[Seen], None]
) -> Seen:
    """Return where the rollout of a release stands, as soon as that is a new place or it doesn't run any more."""
    found: Seen | None = None
    try:
        async with deadline(LIMIT):
            while True:
                watched.check()
                found = watched.last.get(release)
                if found is not None:
                    spoil(found)
                    if found.state != "running" or (found.waits_for and (found.step, found.waits_for) not in places):
                        return found
                await asyncio.sleep(PERIOD)
    except TimeoutError:
        raise watched.fleet.failure(f"for {LIMIT:.0f} s it hasn't gone on: {found}") from None


async def ended(watched: Watched, release: int) -> Seen:
    """Return the rollout of a release once it has ended."""

    async def is_so() -> bool:
        return watched.last[release].state in ENDED

    await watched.fleet.until("the rollout has ended", is_so, lambda: watched.last[release])
    return watched.last[release]


async def settled(made: Fleet, watched: Watched, version: int) -> None:
    """Wait until all nodes are at their targets, with `version` of the function where it isn't 0, and are whole."""
    found: list[Any] = []

    async def there() -> bool:
        watched.check()
        found[:] = await made.items("/v1/nodes?standing=at_target")
        return len(found) == NODES

    await made.until("all nodes are at their targets", there, lambda: [node["name"] for node in found], limit=LIMIT)
    if version:
        others = {node.name for node in made.simulated.nodes.values() if node.inventory.schema_version != version}
        assert not others, others
    for edge in made.edges.values():
        runs, schema = await answered(made, f"{edge.url}/functions/version")
        watched.whole(edge.name, runs, schema)
        if version:
            assert (runs, schema) == (version, version)


async def answered(made: Fleet, url: str) -> tuple[int, int]:
    """Return the version and the schema that the function's answer says."""
    async with asyncio.timeout(scaled(LIMIT)):
        while True:
            try:
                async with made.session.get(url) as answer:
                    if answer.status == 200:
                        said = orjson.loads(await answer.read())
                        return said["version"], said["schema"]["rows"][0][0]
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.1)


@asynccontextmanager
async def watching(made: Fleet) -> AsyncIterator[Watched]:
    """Look at all rollouts until the block ends."""
    watched = Watched(made)
    watched.task = asyncio.create_task(watched.run())
    try:
        yield watched
    finally:
        watched.task.cancel()
        await asyncio.gather(watched.task, return_exceptions=True)


async def seed(made: Fleet, count: int) -> None:
    """Have control know so many versions and schema changes, of which each version answers both numbers."""
    db = await database.connect(made.services.metadata_url, connections=1)

    async def work(conn: Any) -> None:
        now, store = SystemClock().now(), made.services.artifacts_url
        modules = {number: module(number) for number in range(1, count + 1)}
        await seeds.add_versions(conn, store, now, "version", modules, Manifest(sql="read"))
        for number in range(1, count + 1):
            text = f"UPDATE generation SET number = {number}"
            if number == 1:
                text = "CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1);"
            await seeds.add_change(conn, now, number, text)

    try:
        await db.transaction(work)
    finally:
        await db.close()
