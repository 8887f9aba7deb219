"""What operators do in a run: releases, rollbacks, moves and retries, each asked again until it is answered."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from uuid import UUID, uuid4

import msgspec

from control.api import release_bodies
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from edge_runtime.sync.control_client import NoAnswer
from tests.support.simulation import beginning
from tests.support.simulation.database import Connection, Server
from tests.support.simulation.ledger import Ledger
from tests.support.simulation.network import Network
from tests.support.simulation.processes import Process

NODES = queries.load("nodes")
TAKE_GENERATION = NODES.value("take_generation", int)


class Operators:
    """The people at control, who are one process that never dies."""

    def __init__(
        self, process: Process, token: str, random: Random, server: Server, network: Network, ledger: Ledger
    ) -> None:
        self.process = process
        self._token = token
        self._random = random
        self._server = server
        self._network = network
        self._ledger = ledger

    async def act(self, delay: float) -> None:
        """Do something after `delay` seconds."""
        await asyncio.sleep(delay)
        what = self._random.random()
        if what < 0.7:
            await self.release(self._random.choice(beginning.GROUPS))
        elif what < 0.9:
            await self._move()
        else:
            await self._retry()

    async def release_all(self, delay: float) -> None:
        """Give each group a release after `delay` seconds."""
        await asyncio.sleep(delay)
        for group in beginning.GROUPS:
            await self.release(group)

    async def release(self, group: str) -> None:
        """Make a release, or an old one again, and ask under the same key until there is an answer."""
        random = self._random
        numbers = self._numbers(group)
        if numbers and random.random() < 0.4:
            body = release_bodies.NewRelease(group, rollback_to=random.choice(numbers), allow_unfit=True)
        else:
            floor = random.randint(0, beginning.CHANGES)
            body = release_bodies.NewRelease(
                group, beginning.contents(random), schema=floor, allow_unfit=True, now=True
            )
        key, raw = str(uuid4()), msgspec.json.encode(body)
        while True:
            try:
                answer = await self._network.ask(self.process, "POST", "/v1/releases", self._token, raw, 30.0, key)
            except NoAnswer:
                answer = None
            if answer is not None and answer.status < 500:
                break
            await asyncio.sleep(1.0)
        # A release that is to come back may be gone, with what a backup didn't have.
        if answer.status != 201 and not (answer.status == 404 and body.rollback_to is not None):
            self._ledger.wrong(f"a release was refused: {answer.body.decode()}")

    def _numbers(self, group: str) -> list[int]:
        """The numbers of a group's releases."""
        t = self._server.tables
        return [r["number"] for r in t["releases"].values() if t["groups"][r["group_id"]]["name"] == group]

    async def _move(self) -> None:
        """Move a node to the other group, by the statements of `control.api.nodes.move`."""
        t = self._server.tables
        node_id = self._random.choice([*t["nodes"]])
        group_id = next(id for id in t["groups"] if id != t["nodes"][node_id]["group_id"])

        async def work(conn: Connection) -> None:
            await conn.execute(NODES["lock"], UUID(node_id))
            generation = await conn.fetchval(TAKE_GENERATION)
            await conn.execute(NODES["move"], UUID(node_id), UUID(group_id), generation)
            await Changed(nodes={node_id}).announce(conn)

        await self._write(work)

    async def _retry(self) -> None:
        """Have a node try its failed generation again at once, by the statements of `control.api.nodes.retry`."""
        node_id = self._random.choice([*self._server.tables["nodes"]])

        async def work(conn: Connection) -> None:
            await conn.execute(NODES["retry"], UUID(node_id))
            await Changed(nodes={node_id}).announce(conn)

        await self._write(work)

    async def _write(self, work: Callable[[Connection], Awaitable[None]]) -> None:
        while True:
            try:
                return await self._server.run(self.process, work)
            except ProblemError:
                await asyncio.sleep(1.0)
