"""Batches whose messages would be larger than the database takes: CockroachDB refuses those above 16 MiB (08P01)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from control.local.pki import Pki
from control.problems import ProblemError
from control.protocol import wire
from control.storage import sqlstates
from control.sync import node_state
from control.sync.reconciler import NodeRequest, Reconciler
from tests.support import cockroachdb, replica, seeds
from tests.support.replica import Replica, TestNode

LARGEST = 60_000
"""Bytes that the database takes here."""


@pytest.fixture
async def small(
    batches: list[int], database_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> AsyncIterator[Replica]:
    """A replica on a database that takes no message above `LARGEST`."""
    async with cockroachdb.proxied(database_url) as (proxy, url):
        proxy.largest = LARGEST
        async with (await replica.prepare(url, bucket_url, pki, tmp_path)).running() as made:
            yield made


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches of polls that are decided, also of those that fail."""
    sizes: list[int] = []
    real = Reconciler.write

    async def counted(self: Reconciler, requests: list[NodeRequest], *more: Any) -> Any:
        sizes.append(len(requests))
        return await real(self, requests, *more)

    monkeypatch.setattr(Reconciler, "write", counted)
    return sizes


def report(node: TestNode, changes: int) -> NodeRequest:
    """What a node tells that has applied so many schema changes, each some hundred bytes."""
    applied = [wire.AppliedChange(number, 1, f"{number:064}") for number in range(1, changes + 1)]
    inventory = wire.Inventory(schema_version=changes, schema_changes=applied, database_id=node.id)
    return NodeRequest(node.id, wire.digest(inventory), inventory, None)


async def told(small: Replica, requests: list[NodeRequest]) -> list[str]:
    answers = await asyncio.gather(*map(small.services.decisions.ask, requests), return_exceptions=True)
    return [answer.code if isinstance(answer, ProblemError) else answer.kind for answer in answers]  # type: ignore[union-attr]


async def stored(small: Replica) -> list[int]:
    rows = await small.services.db.read(lambda conn: conn.fetch("SELECT schema_version AS n FROM nodes ORDER BY n"))
    return [row["n"] for row in rows]


async def test_reports_of_many_nodes_are_several_messages_of_one_transaction(
    small: Replica, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_state, "MESSAGE_BYTES", LARGEST // 2)
    nodes = await seeds.nodes(small, 20)
    assert await told(small, [report(node, 100) for node in nodes]) == ["at_target"] * 20
    assert await stored(small) == [100] * 20
    assert batches == [20]


async def test_a_batch_that_makes_too_large_a_message_is_split_and_not_tried_again(
    small: Replica, batches: list[int]
) -> None:
    """The limit of the database is lower than the one that control goes by."""
    assert node_state.MESSAGE_BYTES > LARGEST
    nodes = await seeds.nodes(small, 20)
    assert await told(small, [report(node, 100) for node in nodes]) == ["at_target"] * 20
    assert await stored(small) == [100] * 20
    assert batches == [20, 10, 5, 5, 10, 5, 5]
    batches.clear()
    # One that is too large by itself is refused, at once; the others aren't.
    requests = [report(nodes[0], 10), report(nodes[1], 900), report(nodes[2], 20)]
    assert await told(small, requests) == ["at_target", "body_too_large", "at_target"]
    assert batches == [3, 2, 1, 1, 1]


def test_only_what_says_so_is_a_message_that_is_too_large() -> None:
    """PgBouncer says 08P01, too, where it has lost the server."""
    lost = asyncpg.ProtocolViolationError("server conn crashed?")
    large = asyncpg.ProtocolViolationError("message size 17 MiB bigger than maximum allowed message size 16 MiB")
    assert [sqlstates.is_lost(error) for error in (lost, large)] == [True, False]
    assert [sqlstates.is_too_large(error) for error in (lost, large)] == [False, True]
