"""A child that is begun early and not needed is ended, whenever that turns out."""

import asyncio
import socket
from typing import Any, cast

import pytest

from edge_runtime.ipc.early_child import EarlyChild
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient
from tests.support.deadlines import scaled

STEPS = 16
"""Turns of the loop in which a child here is born."""


class Births:
    """Has children born, each after two turns of the loop."""

    def __init__(self) -> None:
        self.alive = 0
        self.refused = False

    async def birth(self, *_: Any, **__: Any) -> Child:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.refused:
            raise NotBorn("no process")
        ours, theirs = socket.socketpair()
        theirs.close()
        child = Child(1, 0, ours)
        real, self.alive = child.close, self.alive + 1

        def close() -> None:
            self.alive -= ours.fileno() >= 0
            real()

        child.close = close  # type: ignore[method-assign]
        return child


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def settled() -> None:
    """Wait until no other task runs."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=scaled(10))


@pytest.mark.parametrize("refused", [True, False])
async def test_one_that_is_dismissed_is_ended_in_every_moment(refused: bool) -> None:
    for moment in range(STEPS):
        births = Births()
        births.refused = refused
        early = EarlyChild(cast(ZygoteClient, births), "compiler")
        early.begin()
        await turns(moment)
        early.dismiss()
        await settled()
        assert births.alive == 0


async def test_one_whose_taker_is_cancelled_is_ended_in_every_moment() -> None:
    for moment in range(STEPS):
        births = Births()
        early = EarlyChild(cast(ZygoteClient, births), "compiler")
        early.begin()
        taking = asyncio.ensure_future(early.take())
        await turns(moment)
        taking.cancel()
        await settled()
        if not taking.cancelled():
            taking.result().close()
        # A taker that hadn't begun has taken nothing.
        early.dismiss()
        assert births.alive == 0
