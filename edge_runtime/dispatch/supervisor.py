"""Keeps the pool's workers alive: starts them, has them load sets of modules, and replaces those that die.

A set of modules is a release with the code that its functions run, identified by a serial number. Workers have the set
being served and, while a release is coming, the next one too.
"""

import asyncio
import functools
import heapq
import logging
import os
import signal
import time
from collections import Counter
from typing import Any, Final

from control.protocol.counts import counted
from edge_runtime import clock
from edge_runtime.dispatch import worker_socket
from edge_runtime.dispatch.call import Call, Order
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.time_watchdog import Watchdog
from edge_runtime.dispatch.trial_load import LoadFailed, ReleaseApplier, TrialLoads
from edge_runtime.dispatch.worker_link import Hooks, WorkerLink
from edge_runtime.ipc import frames, progress_page
from edge_runtime.ipc.claims import Claims
from edge_runtime.ipc.zygote_client import NotBorn, ZygoteClient

__all__ = ["LoadFailed", "Supervisor"]

log = logging.getLogger("skerry.supervisor")

READY_LIMIT: Final = 30.0
"""Seconds that a new worker has to load its modules."""
SUCCESSION: Final = 0.01
"""Seconds between a worker's death and its successor's start, if a spare worker has taken its place: waiting calls need
the processors first."""
BACKOFF: Final = 0.05
BACKOFF_CAP: Final = 5.0
"""Seconds between two attempts to start a worker: the first pause, which doubles each time up to the cap."""
PROVEN: Final = 1.0
"""Seconds after which a worker's death doesn't count as a failed start."""
MISSED_TOLD: Final = 60.0
"""Seconds between two log lines about workers that can't be started."""
LOAD_LIMIT: Final = 180.0
"""Seconds in which all workers must load a release's modules; each loads them between two calls."""
PATIENCE: Final = 0.25
"""Seconds that a release waits for a worker in the middle of a call; after that, the worker loads when the call
ends."""
SPARES: Final = 1
"""Workers that are kept ready in addition to the configured ones: after a death no call waits for a process to
start."""
PRELOADED: Final = 8
"""The most functions that a spare worker loads before it gets calls: those called most often. Each takes memory."""
PRELOAD_PAUSE: Final = 0.1
"""Seconds until the spare worker follows the others, which may be loading several functions at once."""
LOAD_TRIES: Final = 3
"""After this many workers died while loading a release's modules, the modules are to blame."""


class Supervisor:
    """`run` must be running while its other methods are used."""

    def __init__(self, pool: Pool, processes: ZygoteClient, trials: TrialLoads, hooks: Hooks) -> None:
        self._pool = pool
        self._hooks = hooks
        self._watchdog = Watchdog(pool)
        self._trials = trials
        self._processes = processes
        self._serial = 0
        self._loads: dict[int, frames.Load] = {}
        """The sets of modules that workers must have, by serial: the one being served, and the one that is coming."""
        self._failures: dict[int, list[frames.ChildFailure]] = {}
        """For the coming set, by serial: the functions that a new worker couldn't load."""
        self._crashes: dict[int, int] = {}
        """By serial: new workers that died while loading the set."""
        self._slots = list(range(progress_page.SLOTS))  # those of the shared page that are free
        self._preloading: clock.SetTimer | None = None
        """Set while the spare workers are about to load called functions."""
        self._preload_crashes = Counter[str]()
        """Spare workers that died while loading a function, by the sha256 of its code."""
        self.trouble = ""
        """Why workers can't be started; empty while they can, as far as known."""
        self._misses = 0
        """Consecutive failed starts."""
        self._missed_at = 0.0
        """When that was last logged."""
        hooks.loaded = self._newly_loaded

    async def run(self) -> None:
        """Keep the workers alive until cancelled, then stop them."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._pool.settings.workers + SPARES):
                    group.create_task(self._keep())
        finally:
            if self._preloading is not None:
                self._preloading.cancel()
            self._watchdog.close()
            self._pool.close()

    async def load(
        self,
        release: frames.LocalRelease,
        secrets: dict[str, dict[str, str]],
        lacking: dict[str, frames.ChildFailure],
        applier: ReleaseApplier | None = None,
        *,
        whole: bool = True,
    ) -> int:
        """Have all workers load a release's modules while serving others; return the serial for `swap` or `forget`.

        `secrets` and `lacking` are as in `frames.Load`; new functions are tried in `applier`, if given.

        Raises: LoadFailed, after which the workers have unloaded the modules; with `whole` False, functions that can't
        be loaded are left out instead.
        """
        functions = release.functions
        if whole:
            served = self._pool.release.functions if self._pool.release is not None else []
            await self._trials.hold(functions, served, secrets, applier)
        self._serial += 1
        serial = self._serial
        self._loads[serial] = frames.Load(serial, release, secrets, lacking)
        self._failures[serial], self._crashes[serial] = [], 0
        try:
            async with clock.timeout(LOAD_LIMIT):
                await self._all_load(serial, whole)
        except TimeoutError:
            self.forget(serial)
            text = f"The workers didn't come to load the modules of release {release.number} within {LOAD_LIMIT:g} s."
            raise LoadFailed("load_timeout", text) from None
        except BaseException:
            self.forget(serial)
            raise
        finally:
            del self._failures[serial], self._crashes[serial]
        return serial

    async def _all_load(self, serial: int, whole: bool) -> None:
        """Have the workers load a set of modules, half of the workers at a time, so that the others go on serving.

        Workers in the middle of a long call load it when the call ends, and spare workers when they get to it. A
        function may have taken over a worker that has run calls: if such a worker fails, a new one decides.
        """
        doubted = False
        # A worker has two sets at most: first wait for workers that haven't loaded the previous one.
        while any(link.ordered - link.serials for link in self._placed()):
            await self._pool.change()
        while True:
            fit = self._placed()
            lacking = [link for link in fit if serial not in link.ordered]
            half = max((len(fit) + 1) // 2, 1)
            if doubted and not any(serial in link.serials for link in self._pool.links):
                lacking.clear()
            for at in range(0, len(lacking), half):
                for link, order in [(link, self._load(link, serial)) for link in lacking[at : at + half]]:
                    await self._patiently(link, order)
                if doubted := any(link.killed or link.ended.done() for link in lacking[at : at + half]):
                    break
            if (crashed := self._crashes[serial]) >= LOAD_TRIES:
                release = self._loads[serial].release.number
                text = f"{counted(crashed, 'worker')} ended while loading the modules of release {release}."
                raise LoadFailed("module_load_crashed", text)
            if whole and (failures := self._failures[serial]):
                raise LoadFailed(failures[0].code, failures[0].message)
            fit = self._placed()
            if any(serial in link.serials for link in fit) and all(serial in link.ordered for link in fit):
                for link in self._pool.links:
                    if link.usable and link.spare:
                        self._load_missing(link)
                return
            # All workers are in the middle of long calls or being started.
            await self._pool.change()

    def _placed(self) -> list[WorkerLink]:
        """Return the workers that get calls."""
        return [link for link in self._pool.links if link.usable and not link.spare]

    async def _patiently(self, link: WorkerLink, order: Order) -> None:
        """Wait until a worker has carried out its order or turns out to be in the middle of a long call."""
        while not order.answer.done():
            if link.jobs and isinstance(link.jobs[0], Call) and time.monotonic() - link.since >= PATIENCE:
                return
            await asyncio.wait([order.answer], timeout=PATIENCE)

    def swap(self, serial: int) -> None:
        """From now on, serve what `load` has loaded, and unload what was served before. Held calls stay held."""
        old = self._pool.serial
        self._pool.serve(serial, self._loads[serial].release)
        self.forget(old)

    def swap_to_nothing(self) -> None:
        """From now on, serve no function."""
        old = self._pool.serial
        self._pool.serve_nothing()
        self.forget(old)

    def forget(self, serial: int) -> None:
        """Have each worker unload a set of modules after the calls that it has."""
        if self._loads.pop(serial, None) is None:
            return
        for link in self._pool.links:
            if serial in link.ordered:
                link.ordered.discard(serial)
                link.serials.discard(serial)
                order = self._order(link, frames.FORGET, frames.Keep(sorted(link.ordered)))
                # Nobody waits for the answer: a dead worker has forgotten the set too.
                order.answer.add_done_callback(lambda answer: answer.exception())

    async def _keep(self) -> None:
        """Keep one worker alive: start the next one at once, unless the last one died at its start."""
        failures = unborn = 0
        while True:
            born = clock.monotonic()
            try:
                link, fit = await self._one()
            except NotBorn as error:
                unborn += 1
                self._missed(str(error))
                await clock.sleep(min(BACKOFF_CAP, BACKOFF * 2.0 ** min(unborn - 1, 10)))
                continue
            unborn = 0
            if self._complete:
                await clock.sleep(SUCCESSION)
            if fit or clock.monotonic() - born > PROVEN:
                failures = 0
            elif await _from_outside(link):
                # The worker did nothing wrong: the pause only avoids a busy loop if memory is short.
                await clock.sleep(BACKOFF)
            else:
                failures += 1
                delay = min(BACKOFF_CAP, BACKOFF * 2.0 ** min(failures - 1, 10))
                log.error("a worker ended at its start (%d in a row); the next one starts in %.2f s", failures, delay)
                await clock.sleep(delay)

    @property
    def _complete(self) -> bool:
        """Whether all configured workers are there, not counting spare ones."""
        return sum(link.usable and not link.spare for link in self._pool.links) >= self._pool.settings.workers

    def _missed(self, why: str) -> None:
        """Log that a worker couldn't be started: the first time, whenever the reason changes, and once a minute."""
        self._misses += 1
        now = clock.monotonic()
        if why != self.trouble or now - self._missed_at > MISSED_TOLD:
            tries = counted(self._misses, "attempt")
            log.error("no worker can be started (%s so far), and it is tried again: %s", tries, why)
            self.trouble, self._missed_at = why, now

    def _born(self) -> None:
        if self._misses:
            log.info("workers can be started again, after %s", counted(self._misses, "failed attempt"))
        self.trouble, self._misses = "", 0

    async def _one(self) -> tuple[WorkerLink, bool]:
        """Handle one worker from start to exit; return it, and whether it was ever ready for calls.

        Raises: NotBorn, if no worker can be started now.
        """
        slot = self._slots.pop()
        progress_page.clear(self._processes.page, slot)
        Claims(self._processes.page, slot).clear()
        link = None
        try:
            child = await self._processes.birth("worker", slot=slot, patience=0.0)
            self._born()
            link = WorkerLink(child, self._processes.page, self._pool, self._hooks)
            self._pool.links.add(link)
            link.set_applying(self._pool.applying)
            equipping = asyncio.ensure_future(self._equip(link))
            try:
                # Not awaited directly: a cancellation of this task would cancel the future, as if the worker had
                # exited.
                await asyncio.wait([link.ended])
                self._fill()
            finally:
                equipping.cancel()
            return link, equipping.done() and not equipping.cancelled() and equipping.result()
        finally:
            self._slots.append(slot)
            if link is not None and link.ended.done():
                # The slot has been read; the pidfd stays open until the zygote has reported how the worker exited.
                link.child.exited.add_done_callback(lambda _: link.child.close())
            elif link is not None:
                self._pool.links.discard(link)
                link.close()

    async def _equip(self, link: WorkerLink) -> bool:
        """Make a new worker ready for calls; return whether it is."""
        try:
            async with clock.timeout(READY_LIMIT):
                await link.ready
            while missing := self._loads.keys() - link.serials:
                await self._load(link, min(missing)).answer
        except TimeoutError:
            log.error("worker %d was not ready after %.0f s: it is ended", link.child.pid, READY_LIMIT)
            link.kill("not_ready")
            return False
        except frames.ChildGone:
            return False
        link.usable = True
        self._fill()
        self._preload(link)
        return True

    def _fill(self) -> None:
        """Have spare workers take the places of workers that have died or aren't started yet."""
        pool = self._pool
        fit = [link for link in pool.links if link.usable]
        spares = [link for link in fit if link.spare]
        for link in spares[: pool.settings.workers - len(fit) + len(spares)]:
            link.spare = False
            pool.place(link)
        pool.feed()
        pool.changed()

    def _newly_loaded(self) -> None:
        """Schedule the spare workers to load a function that a worker has loaded because it was called."""
        if self._preloading is None:
            self._preloading = clock.call_later(PRELOAD_PAUSE, self._preload_all)

    def _preload_all(self) -> None:
        self._preloading = None
        for link in self._pool.links:
            self._preload(link)

    def _preload(self, link: WorkerLink) -> None:
        """Have a spare worker load the next of the most-called functions, so that the calls that it later takes over
        needn't wait for that. It loads one at a time: it may be needed meanwhile."""
        pool = self._pool
        if not link.usable or not link.spare or link.jobs or pool.serial not in link.serials:
            return
        called = (served for served in pool.functions.values() if served.tally.recent)
        for served in heapq.nlargest(PRELOADED, called, key=lambda served: served.tally.all.calls):
            name, code = served.function.name, _code_of(served.function)
            if name not in link.preloaded and self._preload_crashes[code] < LOAD_TRIES:
                link.preloaded.add(name)
                order = self._order(link, frames.PRELOAD, frames.Preload(pool.serial, served.index))
                order.answer.add_done_callback(functools.partial(self._preloaded, link, order, served.function))
                return

    def _preloaded(
        self, link: WorkerLink, order: Order, local: frames.LocalFunction, answer: asyncio.Future[frames.Frame]
    ) -> None:
        """Handle a spare worker's answer, once it has loaded a function or has died."""
        if answer.exception() is not None:
            self._preload_crashes[_code_of(local)] += order.crashed
            return
        if answer.result().kind == frames.DAMAGED:
            self._hooks.damaged(local.sha256)
        self._preload(link)

    def _load(self, link: WorkerLink, serial: int) -> Order:
        """Order a worker to load a set of modules after the calls that it has."""
        link.ordered.add(serial)
        link.loads += 1
        order = self._order(link, frames.RELEASE, self._loads[serial])
        order.answer.add_done_callback(lambda answer: self._loaded(link, serial, order, answer))
        return order

    def _load_missing(self, link: WorkerLink) -> None:
        """Have a worker that is or was spare load the next set that it lacks, unless it is loading one."""
        wanted = self._loads.keys() if link.spare else {self._pool.serial} & self._loads.keys()
        if not link.loads and (missing := wanted - link.ordered):
            self._load(link, min(missing))

    def _loaded(self, link: WorkerLink, serial: int, order: Order, answer: asyncio.Future[frames.Frame]) -> None:
        """Note that a worker has loaded a set of modules or has died."""
        link.loads -= 1
        new = link.ran is None
        if not answer.cancelled() and answer.exception() is not None:
            if new and order.crashed and serial in self._crashes:
                self._crashes[serial] += 1
        elif not answer.cancelled():
            failures = worker_socket.loaded(answer.result().body).failures
            if failures and not new and serial in self._failures:
                log.warning("worker %d, which has run calls: %s", link.child.pid, failures[0].message)
                link.kill("load_failed")
                return
            if serial in link.ordered:
                link.serials.add(serial)
            for failure in failures:
                self._failures.get(serial, []).append(failure)
                log.error("worker %d: %s", link.child.pid, failure.message)
            self._pool.place(link)
            self._pool.feed()
            if link.usable:
                self._load_missing(link)
                self._preload(link)
        self._pool.changed()

    def _order(self, link: WorkerLink, kind: int, value: Any) -> Order:
        """Send one worker an order, in the same queue as its calls."""
        order = link.order(kind, frames.encode_json(value))
        self._pool.place(link)
        return order


async def _from_outside(link: WorkerLink) -> bool:
    """Return whether a worker was killed neither by itself nor by the front, but by a person, the kernel or the end of
    its zygote."""
    if link.killed:
        return False
    status = await link.child.exited
    return status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)


def _code_of(function: frames.LocalFunction) -> str:
    """Return what names the files of a function's code: their sha256."""
    return function.code[1] + function.image_digest
