"""The workers of a pool: born, made fit for the modules that are served and those that come, and replaced."""

import asyncio
import logging
import os
import signal
import time
from typing import Any, Final

import msgspec

from . import frames, page
from .calls import Order
from .claims import Claims
from .link import Link
from .pool import Pool
from .processes import NotBorn, Processes
from .secrets import Secrets

log = logging.getLogger("skerry.crew")

READY_LIMIT: Final = 10.0
BACKOFF: Final = 0.05
BACKOFF_CAP: Final = 5.0
PROVEN: Final = 1.0
"""Seconds after which a worker that ended is none that dies at its start."""
LOAD_LIMIT: Final = 120.0
"""Seconds until all workers have loaded a release's modules; each does between two calls."""
SPARES: Final = 1
"""Workers beside those that are wanted, with all loaded: a call after a worker's death needn't wait for a birth."""
LOAD_TRIES: Final = 3
"""Workers that may end while they load a release's modules; then the modules are to blame."""

_decode_loaded: Final = msgspec.json.Decoder(frames.Loaded).decode


class LoadFailed(Exception):
    """The workers couldn't load a release's modules: `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Crew:
    """`run` must be running."""

    def __init__(self, pool: Pool, processes: Processes, secrets: Secrets) -> None:
        self._pool = pool
        self._secrets = secrets
        self._processes = processes
        self._serial = 0
        self._loads: dict[int, frames.Load] = {}
        """Sets of modules that workers must have: the one that is served, and the one that comes."""
        self._failures: dict[int, frames.Failure] = {}
        """Of the set that comes: the first function that a worker couldn't load."""
        self._slots = list(range(page.SLOTS))

    async def run(self) -> None:
        """Keep the workers alive until cancelled; then they are ended."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._pool.limits.workers + SPARES):
                    group.create_task(self._keep())
        finally:
            self._pool.close()

    async def load(self, release: frames.LocalRelease, *, whole: bool = True) -> int:
        """Have all workers load a release's modules, beside those that serve; its serial, for `swap` or `forget`.

        Error: `LoadFailed`, and the workers have forgotten them; with `whole` False functions that can't be loaded
        are left out instead.
        """
        self._serial += 1
        serial = self._serial
        functions = release.functions
        self._loads[serial] = frames.Load(
            serial, release, self._secrets.of(functions), self._secrets.lacking(functions)
        )
        try:
            async with asyncio.timeout(LOAD_LIMIT):
                await self._all_load(serial, whole)
        except TimeoutError:
            self.forget(serial)
            text = f"The workers didn't come to load the modules of release {release.number} within {LOAD_LIMIT:g} s."
            raise LoadFailed("load_timeout", text) from None
        except BaseException:
            self.forget(serial)
            raise
        finally:
            self._failures.pop(serial, None)
        return serial

    async def _all_load(self, serial: int, whole: bool) -> None:
        ended = 0
        while True:
            fit = [link for link in self._pool.links if link.usable]
            lacking = [link for link in fit if serial not in link.serials]
            # One after the other, so that the others serve.
            for link in lacking:
                try:
                    await self._load(link, serial)
                except frames.ChildGone:
                    ended += 1
                if ended >= LOAD_TRIES:
                    number = self._loads[serial].release.number
                    text = f"{ended} workers ended while they loaded the modules of release {number}."
                    raise LoadFailed("module_load_crashed", text)
            failure = self._failures.get(serial)
            if failure is not None and whole:
                raise LoadFailed(failure.code, failure.message)
            if fit and not lacking:
                return
            if not fit:
                # All are being born, and load it at their start.
                await self._pool.change()

    def swap(self, serial: int) -> None:
        """Serve what `load` has loaded from now on, and forget what was served before. Calls stay held if they are."""
        old = self._pool.serial
        self._pool.serve(serial, self._loads[serial].release)
        self.forget(old)

    def forget(self, serial: int) -> None:
        """Have the workers unload a set of modules."""
        if self._loads.pop(serial, None) is None:
            return
        for link in self._pool.links:
            if serial in link.serials:
                link.serials.discard(serial)
                order = self._order(link, frames.FORGET, frames.Keep(sorted(link.serials)))
                # Nobody waits for it: a worker that ended has forgotten it too.
                order.answer.add_done_callback(lambda answer: answer.exception())

    async def _keep(self) -> None:
        """One worker after the other, the next one at once where the last had shown that workers can live."""
        failures = 0
        while True:
            born = time.monotonic()
            try:
                link, fit = await self._one()
            except NotBorn:
                continue
            if fit or time.monotonic() - born > PROVEN:
                failures = 0
            elif await _from_outside(link):
                # No fault of what it starts with: only not in a hot loop, should memory be short.
                await asyncio.sleep(BACKOFF)
            else:
                failures += 1
                delay = min(BACKOFF_CAP, BACKOFF * 2.0 ** min(failures - 1, 10))
                log.error("a worker ended at its start (%d in a row); the next one in %.2f s", failures, delay)
                await asyncio.sleep(delay)

    async def _one(self) -> tuple[Link, bool]:
        """One worker from birth to end; whether it ever was fit for calls. Error: `NotBorn`."""
        slot = self._slots.pop()
        page.clear(self._processes.page, slot)
        claims = Claims(self._processes.page, slot)
        claims.clear()
        link = None
        try:
            child = await self._processes.birth("worker", slot=slot)
            link = Link(child, self._pool, claims)
            self._pool.links.add(link)
            equipping = asyncio.ensure_future(self._equip(link))
            try:
                # Not awaited itself: our cancellation would be its, and the link would count as ended.
                await asyncio.wait([link.ended])
                self._fill()
            finally:
                equipping.cancel()
            return link, equipping.done() and not equipping.cancelled() and equipping.result()
        finally:
            self._slots.append(slot)
            if link is not None and link.ended.done():
                # `pool.lost` has read the slot; the pidfd stays until the zygote has said how the worker ended.
                link.child.exited.add_done_callback(lambda _: link.child.close())
            elif link is not None:
                self._pool.links.discard(link)
                link.close()

    async def _equip(self, link: Link) -> bool:
        """Make a new worker fit for calls; whether it is."""
        try:
            async with asyncio.timeout(READY_LIMIT):
                await link.ready
            while missing := self._loads.keys() - link.serials:
                await self._load(link, min(missing))
        except TimeoutError:
            log.error("worker %d was not ready after %.0f s: it is ended", link.child.pid, READY_LIMIT)
            self._pool.kill(link, "not_ready")
            return False
        except frames.ChildGone:
            return False
        link.usable = True
        self._fill()
        return True

    def _fill(self) -> None:
        """Have spare workers take the places of those that are lost, or weren't born yet."""
        pool = self._pool
        fit = [link for link in pool.links if link.usable]
        spares = [link for link in fit if link.spare]
        for link in spares[: pool.limits.workers - len(fit) + len(spares)]:
            link.spare = False
            pool.place(link)
        pool.feed()
        pool.changed()

    async def _load(self, link: Link, serial: int) -> None:
        """Have a worker load a set of modules. Error: `frames.ChildGone`."""
        order = self._order(link, frames.RELEASE, self._loads[serial])
        reply = await order.answer
        if serial in self._loads:
            link.serials.add(serial)
        self._pool.place(link)
        for failure in _decode_loaded(reply.body).failures:
            self._failures.setdefault(serial, failure)
            log.error("worker %d: %s", link.child.pid, failure.message)

    def _order(self, link: Link, kind: int, value: Any) -> Order:
        """Ask one worker, in line with its calls. The answer's error: `frames.ChildGone`."""
        order = Order(asyncio.get_running_loop().create_future())
        if link.ended.done():
            order.answer.set_exception(frames.ChildGone("the worker ended"))
        else:
            self._pool.give(order, link)
            link.send(order.id, kind, b"", frames.encode_json(value))
        return order


async def _from_outside(link: Link) -> bool:
    """Whether a worker was killed by somebody else than itself or the front: a person, the kernel, with its zygote."""
    if link.killed:
        return False
    status = await link.child.exited
    return status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
