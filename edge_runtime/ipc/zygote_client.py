"""The front's side of the zygote: has children forked, watches and kills them, and replaces a zygote that died."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Set
from pathlib import Path
from typing import Any, ClassVar, Final

from edge_runtime import clock
from edge_runtime.ipc import births, frames, progress_page
from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.child_output import ChildOutput

log = logging.getLogger("skerry.processes")

BACKOFF: Final = 0.05
BACKOFF_CAP: Final = 5.0
"""Seconds between two attempts to start a zygote or a child: the first pause, which doubles each time up to the cap."""
PATIENCE: Final = 10.0
"""Seconds for which starting a child is retried if it isn't possible now."""
START_LIMIT: Final = 30.0
"""Seconds that a new zygote has for each step of its start, which are mostly imports. If they weren't enough, for
instance on a slow disk, the next one has twice as many, until one is up."""
GONE_PAUSE: Final = 0.005
"""Seconds between two checks whether a killed zygote is gone."""
SOCKET_BUFFER: Final = 1 << 20
"""Bytes that the sockets of children can hold."""
FRAME_LIMIT: Final = 64 * 1024 * 1024
"""Bytes that an answer may have; the largest is an inventory."""


def child_environment() -> dict[str, str]:
    """Return the environment of a program that the front starts."""
    # The packages' own folder comes first, and the current one is left out, so that nobody else decides what is
    # imported.
    folder = str(Path(__file__).parents[2])
    paths = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # Processes that run functions must not get the node's secrets.
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


class MachineUnfit(Exception):
    """No function can run on this machine in its present state; the message says why and what to do."""


class NotBorn(ConnectionError):
    """The child couldn't be started: the zygote died first, or the system was out of resources. Retry after a while."""


class Child:
    """A process that the zygote has forked for the front."""

    def __init__(self, number: int, slot: int, sock: socket.socket, kind: ChildKind = "worker") -> None:
        self.id = number
        self.kind = kind
        self.slot = slot
        self.sock = sock
        """The front's end, not blocking."""
        self.pid = 0
        self.pidfd = -1
        """-1 before the child is born, and once it is closed."""
        loop = asyncio.get_running_loop()
        self.born: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[int | None] = loop.create_future()
        """The exit status as from waitpid; None if the zygote died first."""
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the process has exited: the kernel reports it through the pidfd, whatever the socket shows."""

    def kill(self) -> None:
        """Kill the child; do nothing if it has exited."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def give_way(self) -> None:
        """Let all other processes run before the child, which has given its last answer and holds no lock."""
        if self.pidfd >= 0 and not self.exited.done():
            with contextlib.suppress(OSError):
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))

    def lives(self) -> bool:
        """Return whether one of the child's threads is running and isn't about to exit."""
        return not self.exited.done() and any(_runs(self.pid))

    def was_born(self, pid: int, pidfd: int) -> None:
        """Note that the zygote has forked the child."""
        self.pid, self.pidfd = pid, pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended)
        self.born.set_result(None)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        if not self.gone.done():
            self.gone.set_result(None)

    def close(self) -> None:
        """Close the front's end, and kill the child if it runs."""
        self.kill()
        self.sock.close()
        if self.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1

    async def ask(self, kind: int, value: Any, limit: float | None) -> frames.Frame:
        """Send a frame and wait for the answer, for children that do one thing at a time, unlike the pool's workers.

        The answer of a child that has exited is what it sent before that. Raises: ChildGone, when it sent nothing;
        TimeoutError, when `limit` seconds have passed.
        """
        async with clock.timeout(limit):
            with contextlib.suppress(frames.ChildGone):
                await self.tell(kind, value)
            return await self.answer()

    async def tell(self, kind: int, value: Any) -> None:
        """Send a frame that has no answer. Raises: ChildGone."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, frames.pack_json(0, kind, value))
        except OSError as error:
            raise frames.ChildGone(str(error)) from None

    async def answer(self, limit: float | None = None) -> frames.Frame:
        """Wait for the next frame. Raises: ChildGone; TimeoutError, when `limit` seconds have passed."""
        async with clock.timeout(limit):
            return await self._frame()

    async def _frame(self) -> frames.Frame:
        # What has arrived is read without waiting: a child that was taken over and never stops sending must not occupy
        # the event loop.
        await asyncio.sleep(0)
        length, request, kind, head = frames.HEADER.unpack(await self._exactly(frames.HEADER_BYTES))
        if length > FRAME_LIMIT:
            raise frames.ChildGone(f"process {self.pid} announced an answer of {length} bytes")
        rest = await self._exactly(length)
        return frames.Frame(request, kind, rest[:head], rest[head:])

    async def _exactly(self, length: int) -> bytes:
        loop = asyncio.get_running_loop()
        parts = bytearray()
        while len(parts) < length:
            try:
                got = await loop.sock_recv(self.sock, min(length - len(parts), 1 << 20))
            except OSError as error:
                raise frames.ChildGone(str(error)) from None
            if not got:
                raise frames.ChildGone(f"process {self.pid} ended in the middle of its work")
            parts += got
        return bytes(parts)


class ZygoteClient:
    """Has children forked by the zygote, which `run` keeps alive: it must be running."""

    PROGRAM: ClassVar[str] = "edge_runtime.children.zygote"
    """The module that the zygote runs."""

    def __init__(self, settings: frames.ChildSettings, lock: int) -> None:
        """`lock`: descriptor of the state directory's lock, which every child inherits."""
        self.settings = settings
        self.lock = lock
        self._page = progress_page.create()
        self.page: memoryview = progress_page.open_page(self._page)
        self._control: socket.socket | None = None
        self._up = asyncio.Event()
        self._starting = clock.timeout(None)
        """The time limit of the current step of a zygote's start."""
        self._start_limit = START_LIMIT
        self._children: dict[int, Child] = {}
        self._refused: Set[ChildKind] = frozenset()
        """The kinds of which no child is started before `_admits` is set."""
        self._admits = asyncio.Event()
        self._admits.set()
        self._life = asyncio.Lock()
        """Held from before a zygote is started until it has exited."""
        self._next = 0
        self.pid = 0
        """Process id of the zygote, 0 while there is none."""
        self.zygotes = 0
        """Zygotes that were started so far."""
        self._fit = False
        """Whether a zygote was ever up."""
        self.uncompiled = ""
        """Why workers run plain calls in Python; empty if they run them in C."""
        self.lacking: tuple[str, ...] = ()
        """The parts of the children's fence that this machine lacks, in words."""

    @contextlib.asynccontextmanager
    async def without(self, *kinds: ChildKind) -> AsyncIterator[None]:
        """Have no child of these kinds until the block ends: those that exist have been killed and have exited when it
        begins, and those that are asked for meanwhile are started after it. Blocks can't be nested."""
        self._refused = frozenset(kinds)
        self._admits.clear()
        try:
            for child in list(self._children.values()):
                if child.kind in kinds:
                    with contextlib.suppress(NotBorn):
                        await asyncio.shield(child.born)
                    child.kill()
                    await asyncio.shield(child.exited)
            yield
        finally:
            self._refused = frozenset()
            self._admits.set()

    @contextlib.asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        """Have no zygote, and so no child at all, until the block ends. The fence of those that come after it is bound
        to the folders that they find; that of the ones before was bound to those of before, by whatever name."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                # It is this process's child, and `run` alone waits for it: the id is its own until `pid` changes.
                os.kill(self.pid, signal.SIGKILL)
        async with self._life:
            yield

    def knows(self, pid: int) -> bool:
        """Return whether a process is a requested child that hasn't exited, or may be one that is being forked."""
        return any(child.pid == pid or not child.born.done() for child in self._children.values())

    async def run(self) -> None:
        """Keep a zygote alive until cancelled. Raises: MachineUnfit, when the first one finds the machine unfit."""
        failures = 0
        try:
            while True:
                started = clock.monotonic()
                try:
                    async with self._life:
                        await self._one()
                except OSError as error:
                    log.error("a zygote can't be started: %s", error)
                failures = 0 if clock.monotonic() - started > BACKOFF_CAP else failures + 1
                delay = min(BACKOFF_CAP, BACKOFF * 2.0 ** min(failures - 1, 10)) if failures else 0.0
                log.warning("the zygote ended; a new one is started%s", f" in {delay:.2f} s" if delay else "")
                await clock.sleep(delay)
        finally:
            os.close(self._page)

    async def birth(
        self,
        kind: ChildKind,
        *,
        slot: int = 0,
        background: bool = False,
        patience: float = PATIENCE,
    ) -> Child:
        """Start a child. If that isn't possible now, retry for `patience` seconds.

        Raises: NotBorn, when none has started after that time.
        """
        end = clock.monotonic() + patience
        delay = BACKOFF
        while True:
            try:
                return await self._birth(kind, slot, background)
            except NotBorn:
                if clock.monotonic() + delay > end:
                    raise
            await clock.sleep(delay)
            delay = min(2 * delay, BACKOFF_CAP)

    async def _birth(self, kind: ChildKind, slot: int, background: bool) -> Child:
        """Ask the zygote once for a child. Raises: NotBorn."""
        await self._up.wait()
        while kind in self._refused:
            await self._admits.wait()
            await self._up.wait()
        assert self._control is not None  # noqa: S101
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise NotBorn(f"the front can't make a socket for a process: {error}") from None
        with theirs:
            ours.setblocking(False)
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            self._next += 1
            child = Child(self._next, slot, ours, kind)
            message = frames.encode_json(births.Birth(child.id, kind, slot, background))
            self._children[child.id] = child
            try:
                # The zygote reads continuously: if its buffer is full it is stuck, and waiting would stall the front.
                socket.send_fds(self._control, [message], [theirs.fileno()])
            except OSError as error:
                self._children.pop(child.id)
                child.close()
                raise NotBorn(f"the zygote can't be asked for a process: {error}") from None
        try:
            await child.born
        except BaseException:
            self._children.pop(child.id, None)
            child.close()
            raise
        return child

    async def _one(self) -> None:
        """Handle one zygote from start to exit."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with contextlib.ExitStack() as unless_started:
            unless_started.callback(ours.close)
            with theirs:
                output = ChildOutput()
                unless_started.callback(output.close)
                try:
                    process = self._exec(theirs.fileno(), output.write)
                finally:
                    output.started()
            unless_started.pop_all()
        self.pid = process.pid
        self.zygotes += 1
        ended: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(ours, self._news, ours, ended)
            async with clock.timeout(self._start_limit) as self._starting:
                up = asyncio.ensure_future(self._up.wait())
                try:
                    await asyncio.wait((up, ended), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    up.cancel()
                self._starting.reschedule(None)
                await ended
        except TimeoutError:
            text = "a new zygote (process %d) came no further in %.0f s of its start; the next one has twice the time"
            log.error(text, process.pid, self._start_limit)
            self._start_limit *= 2
        finally:
            self._up.clear()
            self.pid = 0
            self._control = None
            loop.remove_reader(ours)
            ours.close()
            process.kill()
            output.close()
            orphans, self._children = self._children, {}
            try:
                # Once killed, the zygote and its children are gone at once, unless a disk delays them: don't block the
                # event loop.
                while process.poll() is None:  # noqa: ASYNC110
                    await asyncio.sleep(GONE_PAUSE)
            finally:
                for child in orphans.values():
                    if not child.born.done():
                        child.born.set_exception(NotBorn("the zygote died"))
                    if not child.exited.done():
                        child.exited.set_result(None)

    def _exec(self, control: int, output: int) -> subprocess.Popen[bytes]:
        arguments = births.Arguments(control, self._page, os.getpid(), self.settings)
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", self.PROGRAM, frames.encode_json(arguments).decode()],
            pass_fds=(control, self._page, self.lock),
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is only for the front. A separate session would also get a separate share of the processors.
            process_group=0,
        )

    def _news(self, control: socket.socket, ended: asyncio.Future[None]) -> None:
        """Handle the messages from the zygote."""
        while not ended.done():
            try:
                message, descriptors, _, _ = socket.recv_fds(control, births.MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                ended.set_result(None)
                return
            match births.decode_news(message):
                case births.ZygoteUp(lacking, uncompiled):
                    self.lacking, self.uncompiled = lacking, uncompiled
                    if uncompiled:
                        log.info("workers run all calls in Python: their loop is not compiled: %s", uncompiled)
                    for piece in lacking:
                        log.warning("functions run without a part of their fence: %s", piece)
                    self._control = control
                    self._fit = True
                    self._start_limit = START_LIMIT
                    self._up.set()
                case births.Starting():
                    self._starting.reschedule(clock.monotonic() + self._start_limit)
                case births.Recovering():
                    log.info("the database's write-ahead log is read: the node didn't end in order")
                case births.ZygoteUnfit(text):
                    if not self._fit:
                        ended.set_exception(MachineUnfit(text))
                        return
                    # The machine was fit and will be again: it is short of something, or is being upgraded.
                    log.error("a new zygote can't run guests now: %s", text)
                case births.Born(number, pid):
                    self._born(number, pid, descriptors)
                case births.BirthFailed(number, why):
                    self._not_born(number, why)
                case births.Died(number, status):
                    child = self._children.pop(number, None)
                    if child is not None and not child.exited.done():
                        child.exited.set_result(status)

    def _born(self, number: int, pid: int, descriptors: list[int]) -> None:
        if not descriptors:
            # The kernel leaves out a descriptor that there is no room for. The child exits when its socket is closed.
            self._not_born(number, "the front has too many open files")
            return
        child = self._children.get(number)
        if child is None:
            # Nobody waits for the child any more.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptors[0], signal.SIGKILL)
            os.close(descriptors[0])
            return
        child.was_born(pid, descriptors[0])

    def _not_born(self, number: int, why: str) -> None:
        child = self._children.pop(number, None)
        if child is not None and not child.born.done():
            child.born.set_exception(NotBorn(why))


def _runs(pid: int) -> Iterator[bool]:
    """Yield, for each thread of a process, whether it isn't about to exit."""
    tasks = f"/proc/{pid}/task"
    with contextlib.suppress(OSError):
        for thread in os.listdir(tasks):
            with contextlib.suppress(OSError):
                yield not births.ending(Path(tasks, thread, "stat").read_bytes())
