"""A child that is begun early and not needed is ended, whenever that turns out."""

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from edge_runtime.ipc.early_child import EarlyChild
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient
from tests.support.deadlines import scaled

STEPS = 16
"""Turns of the loop in which a child here is born and all is done with it."""


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


async def work(did: list[str], child: Child) -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert child.sock.fileno() >= 0, "it is ended"
    did.append("work")


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def begin(early: EarlyChild, did: list[str]) -> None:
    early.begin()


def prepare(early: EarlyChild, did: list[str]) -> None:
    early.prepare(functools.partial(work, did))


def prepare_twice(early: EarlyChild, did: list[str]) -> None:
    prepare(early, did)
    prepare(early, did)


async def settled() -> None:
    """Wait until no other task runs."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=scaled(10))


every_start = pytest.mark.parametrize("start", [begin, prepare, prepare_twice])
each_first = pytest.mark.parametrize("first", [True, False])


@every_start
@each_first
@pytest.mark.parametrize("refused", [True, False])
async def test_one_that_is_dismissed_is_ended_in_every_moment(
    start: Callable[[EarlyChild, list[str]], None], first: bool, refused: bool
) -> None:
    for moment in range(STEPS):
        births, did = Births(), list[str]()
        births.refused = refused
        early = EarlyChild(cast(ZygoteClient, births), "compiler", functools.partial(work, did) if first else None)
        start(early, did)
        await turns(moment)
        early.dismiss()
        done = len(did)
        await settled()
        assert births.alive == 0
        assert len(did) == done, "nothing more is done with it"


@every_start
@each_first
async def test_one_whose_taker_is_cancelled_is_ended_in_every_moment(
    start: Callable[[EarlyChild, list[str]], None], first: bool
) -> None:
    for moment in range(STEPS):
        births, did = Births(), list[str]()
        early = EarlyChild(cast(ZygoteClient, births), "compiler", functools.partial(work, did) if first else None)
        start(early, did)
        taking = asyncio.ensure_future(early.take())
        await turns(moment)
        taking.cancel()
        await settled()
        if not taking.cancelled():
            taking.result().close()
        # A taker that hadn't begun has taken nothing.
        early.dismiss()
        assert births.alive == 0


@every_start
@each_first
async def test_one_that_is_taken_has_had_all_done_with_it(
    start: Callable[[EarlyChild, list[str]], None], first: bool
) -> None:
    births, did = Births(), list[str]()
    early = EarlyChild(cast(ZygoteClient, births), "compiler", functools.partial(work, did) if first else None)
    start(early, did)
    child = await early.take()
    assert len(did) == first + {begin: 0, prepare: 1, prepare_twice: 2}[start]
    early.dismiss()
    assert births.alive == 1
    child.close()


async def test_what_was_done_with_one_that_waits_for_long_is_not_kept() -> None:
    births, did = Births(), list[str]()
    early = EarlyChild(cast(ZygoteClient, births), "compiler", functools.partial(work, did))
    for _ in range(20):
        prepare(early, did)
        await settled()
    assert len(did) == 21
    assert len(early._tasks) == 2
    early.dismiss()
    assert births.alive == 0
