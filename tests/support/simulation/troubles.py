"""The faults of a run: each kind is in a part of the runs, since many together hide what a few bring out."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

from tests.support.simulation import database, network, node
from tests.support.simulation.node import Node
from tests.support.simulation.processes import Process

if TYPE_CHECKING:
    from tests.support.simulation.world import World

FAULTS_FOR = 24.0
"""Seconds of a run in which there are faults."""
LATE_START = 12.0
"""Seconds within which a process that was killed is started again."""


class Troubles:
    """Begins the faults of a world, and ends them."""

    def __init__(self, random: Random) -> None:
        self.on = False
        self.lost: set[str] = set()
        """Nodes that never come back."""
        self._random = random
        self._world: World

    def begin(self, world: "World") -> None:
        """From now on everything may go wrong that this seed has."""
        self._world, self.on, random = world, True, self._random
        world.network.weather = network.Weather(*(self._often(share) for share in (0.3, 0.2, 0.4, 0.2)))
        world.network.sticky = random.random() < 0.5
        world.server.weather = database.Weather(*(self._often(share) for share in (0.1, 0.2, 0.1, 0.1)))
        rotating = random.random() < 0.25
        for each in world.nodes:
            each.weather = node.Weather(self._often(0.3), self._often(0.2))
            if rotating and random.random() < 0.3:
                each.rotate_after = timedelta(seconds=10)
        world.risk.share = self._often(0.01)
        for what, share, most in (
            (self._kill_node, 0.5, 4),
            (self._kill_replica, 0.5, 4),
            (self._cut_node, 0.5, 4),
            (self._stop_database, 0.3, 4),
            (self._lose_artifact, 0.5, 4),
            (self._lose_node, 0.3, 1),
            # A node whose new credential isn't in the backup would have to join again.
            (self._restore, 0.0 if rotating else 0.2, 1),
        ):
            if random.random() < share:
                for _ in range(random.randint(1, most)):
                    # A restoration takes a while itself.
                    latest = FAULTS_FOR / 2 if what == self._restore else FAULTS_FOR
                    world.operators.process.spawn(self._later(random.random() * latest, what))

    def end(self) -> None:
        """The network, the database and the nodes are well; all that were killed start again but for the lost one."""
        world, self.on = self._world, False
        world.network.heal()
        world.server.weather, world.server.up, world.risk.share = database.Weather(), True, 0.0
        for each in world.nodes:
            each.weather = node.Weather()
        world.ledger.say(f"no more faults; lost for good: {', '.join(self.lost) or 'nobody'}")
        for replica in world.replicas:
            if not replica.process.alive:
                replica.start()
        for each in world.nodes:
            self.start(each)

    def start(self, each: Node) -> None:
        """Start a node that doesn't run, unless it is lost."""
        if not each.runs and each.name not in self.lost:
            self._world.ledger.say(f"{each.name}: starts")
            each.start()

    def struck(self, process: Process, point: str) -> None:
        """A process has died at a step of its own."""
        self._world.ledger.say(f"{process.name}: dies at {point}")
        self._restart(process.name)

    def _often(self, share: float) -> float:
        return share * self._random.random() if self._random.random() < 0.5 else 0.0

    async def _later(self, delay: float, work: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(delay)
        if self.on:
            await work()

    def _restart(self, name: str) -> None:
        """Have a process that has died start again in a while."""
        world, delay = self._world, self._random.random() * LATE_START
        each = world.by_name.get(name)
        if each is not None:
            if self._random.random() < 0.3:
                each.disk.lose_power()
            world.loop.call_later(delay, self.start, each)
        else:
            replica = next(replica for replica in world.replicas if replica.name == name)
            world.loop.call_later(delay, lambda: None if replica.process.alive else replica.start())

    async def _kill_node(self) -> None:
        each = self._random.choice(self._world.nodes)
        if each.process is not None and each.runs:
            self._world.ledger.say(f"{each.name}: killed")
            each.process.kill()
            self._restart(each.name)

    async def _lose_node(self) -> None:
        """A node is killed in the middle of a sync, and never comes back."""
        world = self._world
        while self.on:
            syncing = [each for each in world.nodes if each.runs and each.id in world.server.tables.open_syncs]
            if syncing:
                each = self._random.choice(syncing)
                world.ledger.say(f"{each.name}: killed for good")
                self.lost.add(each.name)
                assert each.process is not None
                each.process.kill()
                return
            await asyncio.sleep(0.1)

    async def _kill_replica(self) -> None:
        replica = self._random.choice(self._world.replicas)
        if replica.process.alive:
            self._world.ledger.say(f"{replica.name}: killed")
            replica.process.kill()
            self._restart(replica.name)

    async def _lose_artifact(self) -> None:
        """A node finds that the artifact of a function that it runs is damaged."""
        each = self._random.choice(self._world.nodes)
        if each.inventory.functions:
            lost = self._random.choice(each.inventory.functions)
            self._world.ledger.say(f"{each.name}: loses {lost.name}")
            each.lose(lost.sha256)
            self._world.ledger.knows(each)

    async def _cut_node(self) -> None:
        each, cut = self._random.choice(self._world.nodes), self._world.network.cut
        self._world.ledger.say(f"{each.name}: cut off")
        cut.add(each.name)
        await asyncio.sleep(self._random.random() * 40)
        cut.discard(each.name)

    async def _stop_database(self) -> None:
        server = self._world.server
        self._world.ledger.say("the database stops")
        server.up = False
        await asyncio.sleep(self._random.random() * 10)
        server.up = True

    async def _restore(self) -> None:
        """The metadata are restored from a backup that is a release old; control is stopped meanwhile, or runs on."""
        world, stopped = self._world, self._random.random() < 0.5
        backup = world.server.tables.backup()
        await asyncio.sleep(self._random.random() * 5)
        await world.operators.release_all(0)
        await asyncio.sleep(self._random.random() * 5)
        if self.on:
            # A backup that no mark is younger than can't be noticed (ADR 36): restoring takes longer than that.
            stopped = stopped or not all(replica.notices(backup) for replica in world.replicas)
            world.ledger.say(f"the metadata are restored from a backup{'' if stopped else ', control runs on'}")
            for replica in world.replicas if stopped else ():
                replica.process.kill()
                self._restart(replica.name)
            # What was committed before may be answered after.
            world.ledger.overwritten |= await world.server.restore(backup)
