"""Releases in memory: one transaction's reading takes nothing away from another's."""

import asyncio
from collections.abc import Sequence
from typing import Any

from control.storage.queries import Rows
from control.sync import node_state
from control.sync.node_state import Targets


class Conn:
    """Has every release, and answers once it is told to go on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked: list[str] = []

    async def fetch(self, query: Rows[Any], ids: Sequence[str]) -> list[Any]:
        await self.go.wait()
        if query is node_state.RELEASE_FUNCTIONS:
            return []
        self.asked += ids
        return [query.row(id, 1, 0, "") for id in ids]


async def test_a_release_that_was_known_is_answered_though_others_took_its_place_meanwhile() -> None:
    known, quick, slow = Targets(), Conn(), Conn()
    quick.go.set()
    await known.releases(quick, ["a"])
    reading = asyncio.create_task(known.releases(slow, ["a", "b"]))
    await asyncio.sleep(0)
    await known.releases(quick, [str(number) for number in range(node_state.RELEASES_KEPT)])
    slow.go.set()
    assert (await reading).keys() == {"a", "b"}


async def test_releases_are_read_once_and_no_more_are_kept_than_are_to_be() -> None:
    known, conn = Targets(), Conn()
    conn.go.set()
    ids = [str(number) for number in range(2 * node_state.RELEASES_KEPT)]
    for start in range(0, len(ids), 100):
        for _ in range(2):
            part = ids[start : start + 100]
            assert list(await known.releases(conn, part)) == part
        assert len(known._releases) <= node_state.RELEASES_KEPT
    assert conn.asked == ids
