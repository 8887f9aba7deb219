"""The world of one seed: what there is, what happens in it, and how it must end."""

import asyncio
from datetime import timedelta
from random import Random

from tests.support.simulation import beginning, database
from tests.support.simulation.ledger import Ledger, Violation
from tests.support.simulation.loop import START, VirtualLoop
from tests.support.simulation.network import Network
from tests.support.simulation.node import Node
from tests.support.simulation.operators import Operators
from tests.support.simulation.processes import Process, Risk
from tests.support.simulation.replica import Replica
from tests.support.simulation.troubles import FAULTS_FOR, Troubles

BOUND = 700.0
"""Seconds after the last fault in which everything must be as the operators want it: a node that has failed often
waits up to 300 s for its next attempt."""
QUIET_BOUND = 8.0
"""The same after a release while there are no faults: held polls are woken within a second, and a sync takes one."""
QUIET_RUNS = 4
"""One run in so many ends with a release that meets no faults."""
REPLICAS = 2


class World:
    """The fleet of one seed. `run` it once."""

    def __init__(self, seed: int, nodes: int, loop: VirtualLoop, mirror: database.Mirror | None) -> None:
        self.seed = seed
        self.loop = loop
        self.random = random = Random(seed)
        self.ledger = Ledger(loop)
        self.server = database.Server(loop, Random(random.random()), self.ledger, mirror)
        self.ledger.tables = self.server.tables
        self.network = Network(loop, Random(random.random()), lambda: [r for r in self.replicas if r.runs])
        self.troubles = Troubles(Random(random.random()))
        self.risk = Risk(Random(random.random()), self.troubles.struck)
        token = beginning.fill(self.server.tables)
        safe = Risk(Random(0), self.troubles.struck)
        person = Process("operator", safe)
        self.operators = Operators(person, token, Random(random.random()), self.server, self.network, self.ledger)
        self.nodes = [self._node(f"n{n}", beginning.GROUPS[n * 4 // nodes == 3]) for n in range(nodes)]
        self.by_name = {node.name: node for node in self.nodes}
        self.replicas = [
            Replica(f"control-{n}", loop, self.server, self.risk, self.ledger.answered) for n in range(REPLICAS)
        ]

    def _node(self, name: str, group: str) -> Node:
        id, token = beginning.join(self.server.tables, name, group)
        offset = timedelta(seconds=self.random.choice((0, 0, 0, 3, -40, 4000)))
        made = Node(id, name, token, Random(self.random.random()), self.risk, self.ledger, offset)
        self.ledger.knows(made)
        return made

    async def run(self) -> None:
        """All of it; raises `Violation`."""
        random, person = self.random, self.operators.process
        self.server.filled()
        self.troubles.begin(self)
        for replica in self.replicas:
            replica.start()
        for each in self.nodes:
            self.loop.call_later(random.random() * 2, self.troubles.start, each)
        actions = [person.spawn(self.operators.release_all(0.5))]
        for _ in range(random.randint(1, 3)):
            actions.append(person.spawn(self.operators.act(random.random() * FAULTS_FOR)))
        while self.loop.time() < FAULTS_FOR:
            await asyncio.sleep(1.0)
            self.ledger.check()
        self.troubles.end()
        await asyncio.gather(*actions)
        await self._until_settled("the last fault", BOUND)
        if self.seed % QUIET_RUNS == 0:
            while self._waiting():
                await asyncio.sleep(1.0)
            await self.operators.release_all(0.5)
            await self._until_settled("a release without any fault", QUIET_BOUND)

    async def _until_settled(self, since: str, bound: float) -> None:
        """Until everything is as the operators want it, for `bound` seconds; raises `Violation`."""
        end = self.loop.time() + bound
        while wrong := self._unsettled(lost=bound == BOUND):
            self.ledger.check()
            if self.loop.time() > end:
                raise Violation(f"{bound:.0f} s after {since} {wrong}")
            await asyncio.sleep(1.0)
            if (group := self._behind()) is not None:
                await self.operators.release(group)
        self.ledger.check()
        self.ledger.say("settled")

    def _waiting(self) -> bool:
        """Whether a node may still wait because of a fault: it hasn't asked anything since."""
        seen = self.server.tables["node_presence"]
        heard = (seen[each.id]["last_seen_at"] for each in self.nodes if each.name not in self.troubles.lost)
        return min(heard) < START + timedelta(seconds=FAULTS_FOR)

    def _behind(self) -> str | None:
        """A group that needs another release, since a backup that was restored has none, or has less than its nodes."""
        t = self.server.tables
        for group in t["groups"].values():
            if group["release_id"] is None:
                return str(group["name"])
        for each in self.nodes:
            row = t["nodes"][each.id]
            group = t["groups"][row["group_id"]]
            target = max(row["generation"], group["generation"])
            if row["error_code"] == "generation_lower" and row["failed_generation"] == target:
                return str(group["name"])
        return None

    def _unsettled(self, *, lost: bool) -> str:
        """What isn't as it should be, or ''. `lost`: also of nodes that never come back, whose syncs end after a while.

        A copy that the network made of such a node's poll may wait at a replica, and be answered with a sync.
        """
        t = self.server.tables
        for each in self.nodes:
            row = t["nodes"][each.id]
            group = t["groups"][row["group_id"]]
            target = max(row["generation"], group["generation"])
            if each.id in t.open_syncs and (lost or each.name not in self.troubles.lost):
                return f"the sync {t.open_syncs[each.id]} of {each.name} hasn't ended"
            if each.name in self.troubles.lost:
                continue
            if group["release_id"] is None:
                return f"group {group['name']} has no release"
            if not self.ledger.runs(each.inventory, group["release_id"]):
                return f"{each.name} doesn't run the release of {group['name']} ({row['error_code']})"
            if row["confirmed_generation"] < target or row["state"] != "online":
                return f"control has {each.name} {row['state']} at {row['confirmed_generation']} of {target}"
            if each.owes is not None:
                return f"{each.name} hasn't told the result of its sync"
        return ""
