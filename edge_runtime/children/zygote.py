"""The zygote: a process of one thread that has imported everything, forks the front's children, and reaps them.

The front has threads, so a fork from it would be unsafe; a fresh Python takes 80 ms, a fork of this one 3. It is
started by exec, talks SOCK_SEQPACKET with the front (`Birth` with the child's socket in; `Up`, `Unfit`, `Born` with a
pidfd or `BirthFailed`, and `Died` out), and never opens libsql or runs a guest itself, but for one of our own
(`rehearsal`).
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final

import msgspec

from control import faults
from edge_runtime import mapped_pages, wal
from edge_runtime.children.index_lock import IndexLock
from edge_runtime.ipc import frames
from edge_runtime.ipc.births import MESSAGE_BYTES, Arguments, Birth, BirthFailed, Born, Died, Recovering, Unfit, Up
from edge_runtime.ipc.progress_page import open_slot
from edge_runtime.sandbox import fence

LOCK_PERIOD_MS: Final = 100
"""Between two looks whether a child has opened the libsql file."""


_decode_birth: Final = msgspec.json.Decoder(Birth).decode


def main(argument: str) -> None:
    arguments = msgspec.json.decode(argument, type=Arguments)
    fence.die_with_parent(arguments.parent)
    # A supervisor or a terminal may signal the whole group: the front decides when its children end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=arguments.control)
    try:
        children = _imports()
        lacking = fence.lacking()
        # SQLite looks once where temporary files go: at the first opening, in a child.
        os.environ["SQLITE_TMPDIR"] = str(Path(arguments.settings.state) / wal.TEMPORARY)
        fence.prepare(Path(arguments.settings.state))
    except Exception as error:
        control.send(frames.encode_json(Unfit(str(error))))
        return
    if lacking and arguments.settings.fence == "required":
        control.send(frames.encode_json(Unfit(_unfenced(lacking))))
        return
    database = Path(arguments.settings.state, wal.FILE)
    if wal.has_log(database):
        control.send(frames.encode_json(Recovering()))
        if why := _recovered(database):
            # The front starts another zygote after a while.
            print(why, file=sys.stderr)
            return
    gc.collect()
    gc.freeze()
    # Mostly LLVM's, read when it was linked: the compilers alone need them, and find them again.
    mapped_pages.drop()
    control.send(frames.encode_json(Up(lacking)))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Zygote(control, arguments, children).run()


def _recovered(database: Path) -> str:
    """Recover the log; why that can't be done, or nothing."""
    # Not in the front, which imports this module.
    from edge_runtime.children import recovery

    try:
        recovery.run(database)
    except recovery.Unreadable as error:
        return str(error)
    return ""


def _unfenced(lacking: tuple[str, ...]) -> str:
    return (
        f"this machine can't fence in what runs functions. {'. '.join(lacking)}. Whoever breaks out of a function's "
        "sandbox could do there what this user can. To run all the same, with what there is of the fence, set "
        "SKERRY_EDGE_FENCE=partial"
    )


def _imports() -> dict[str, ModuleType]:
    """Everything that a child will use, so that a fork has it already. Raises: whatever makes this machine unfit."""
    from edge_runtime import aot_cache
    from edge_runtime.children import applier, checkpointer, compile_child, recovery, warmup, worker
    from edge_runtime.guests import guest

    guest.prepare()
    warmup.rehearse()
    # For later, when its file may be another version's.
    del recovery
    # Looked up once, in a file that children can't read.
    aot_cache.key("", 0)
    return {"worker": worker, "applier": applier, "compiler": compile_child, "checkpointer": checkpointer}


class Zygote:
    def __init__(self, control: socket.socket, arguments: Arguments, modules: dict[str, ModuleType]) -> None:
        self._control = control
        self._arguments = arguments
        self._modules = modules
        self._children: dict[int, tuple[int, int]] = {}
        """By pidfd: the front's id of the child, and its pid."""
        self._database = Path(arguments.settings.state, wal.FILE)
        self._lock = IndexLock(self._database)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> None:
        """Until the front closes its end. Raises: BrokenPipeError, ConnectionResetError: it has, in the middle."""
        while True:
            for descriptor, _ in self._poll.poll(None if self._is_locked() else LOCK_PERIOD_MS):
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._serve():
                    return

    def _serve(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 1)
        if not message:
            return False
        birth = _decode_birth(message)
        me = os.getpid()
        faults.reach(f"edge.birth.{birth.kind}.before")
        if not descriptors:
            # The kernel leaves out what there is no room for.
            self._not_born(birth, "the zygote has too many open files")
            return True
        if birth.kind != "compiler" and (why := self._unreadable()):
            os.close(descriptors[0])
            self._not_born(birth, why)
            return True
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptors[0])
            self._not_born(birth, f"the system can't make a process: {error}")
            return True
        if pid == 0:
            self._child(birth, descriptors[0], me)
        os.close(descriptors[0])
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._not_born(birth, f"the zygote can't watch over a process: {error}")
            return True
        self._children[pidfd] = (birth.id, pid)
        self._poll.register(pidfd, select.POLLIN)
        faults.reach(f"edge.birth.{birth.kind}.after")
        socket.send_fds(self._control, [frames.encode_json(Born(birth.id, pid))], [pidfd])
        return True

    def _unreadable(self) -> str:
        """Where nobody has the libsql file open any more, the next one who opens it would recover its log: recover it
        before. Why that can't be done, or nothing."""
        if self._is_locked() or not wal.has_log(self._database):
            return ""
        return _recovered(self._database)

    def _is_locked(self) -> bool:
        """Whether the log's index is kept for those who open the file from now on; it is from the first on who did."""
        try:
            return self._lock.take()
        except OSError as error:
            print(f"the index of the database's log can't be looked at: {error}", file=sys.stderr, flush=True)
            return False

    def _not_born(self, birth: Birth, why: str) -> None:
        self._control.send(frames.encode_json(BirthFailed(birth.id, why)))

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        child, pid = self._children.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self._control.send(frames.encode_json(Died(child, status)))

    def _child(self, birth: Birth, descriptor: int, parent: int) -> None:
        """Never returns."""
        code = 1
        try:
            fence.die_with_parent(parent)
            self._control.close()
            for pidfd in self._children:
                os.close(pidfd)
            if self._lock.descriptor >= 0:
                os.close(self._lock.descriptor)
            if birth.kind == "worker":
                fence.use_batch_scheduling()
            if birth.background:
                fence.use_idle_scheduling()
            elif birth.kind == "compiler":
                fence.lower_priority()
            sock = socket.socket(fileno=descriptor)
            sock.setblocking(True)
            slot = open_slot(self._arguments.page, birth.slot)
            os.close(self._arguments.page)
            settings = self._arguments.settings
            fence.enter(birth.kind)
            self._modules[birth.kind].serve(sock, slot, 0, settings)
            code = 0
        except (BrokenPipeError, ConnectionResetError, frames.ChildGone):
            # The front has gone, or doesn't want the answer any more.
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
