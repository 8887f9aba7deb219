"""The zygote: a process with one thread that has imported everything; it forks the front's children and reaps them.

The front has threads, so a fork of it would be unsafe; and a fresh Python takes 80 ms to start, a fork of the zygote 3.
The zygote is started by exec and talks with the front on a SOCK_SEQPACKET socket (`ipc.births`). It never opens libsql,
and the only guest that it runs is a built-in one (`warmup`).
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

import msgspec

from control.protocol import faults
from edge_runtime import process_memory, wal
from edge_runtime.children import immortal
from edge_runtime.ipc import frames
from edge_runtime.ipc.births import (
    MESSAGE_BYTES,
    Arguments,
    Birth,
    BirthFailed,
    Born,
    Died,
    Recovering,
    Starting,
    ZygoteUnfit,
    ZygoteUp,
)
from edge_runtime.ipc.progress_page import open_slot
from edge_runtime.native import library as native
from edge_runtime.sandbox import fence

_BY_LIBSQL: Final = ("worker", "applier")
"""The children that open the database with libsql."""

_decode_birth: Final = msgspec.json.Decoder(Birth).decode


def main(argument: str) -> None:
    """Serve the front until it closes its end; `argument`: `births.Arguments` in JSON."""
    arguments = msgspec.json.decode(argument, type=Arguments)
    fence.die_with_parent(arguments.parent)
    # A process supervisor or a terminal may signal the whole group, but the front decides when its children exit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=arguments.control)
    try:
        children = _imports(lambda: control.send(frames.encode_json(Starting())))
        lacking = fence.lacking()
        # SQLite looks for the folder of temporary files only once: when it is first used, in a child.
        os.environ["SQLITE_TMPDIR"] = str(Path(arguments.settings.state) / wal.TEMPORARY)
        fence.prepare(Path(arguments.settings.state))
    except Exception as error:
        control.send(frames.encode_json(ZygoteUnfit(str(error))))
        return
    if lacking and arguments.settings.fence == "required":
        control.send(frames.encode_json(ZygoteUnfit(_unfenced(lacking))))
        return
    gc.collect()
    # Nothing else is running: objects made from here on are freed as usual.
    immortal.make_immortal()
    gc.freeze()
    # Mostly pages of LLVM, read while it was linked. Only compilers need them, and can reread them.
    process_memory.drop_mapped()
    control.send(frames.encode_json(ZygoteUp(lacking, native.unusable())))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Zygote(control, arguments, children).run()


def _unfenced(lacking: tuple[str, ...]) -> str:
    return (
        f"this machine can't fence in what runs functions. {'. '.join(lacking)}. Whoever breaks out of a function's "
        "sandbox could do there what this user can. To run all the same, with what there is of the fence, set "
        "SKERRY_EDGE_FENCE=partial"
    )


def _imports(step: Callable[[], object] = lambda: None) -> dict[str, ModuleType]:
    """Import everything that children will use, so that a fork already has it.

    Call `step` repeatedly meanwhile: on a slow machine this takes minutes.

    Raises: any exception, when this machine can't run functions.
    """
    from edge_runtime.children import checkpointer

    step()
    from edge_runtime.guests import guest

    step()
    guest.prepare()
    step()
    from edge_runtime import aot_cache
    from edge_runtime.children import applier, compile_child, plain_calls, repeater, warmup, worker

    step()
    plain_calls.prepare()
    step()
    warmup.rehearse()
    step()
    # Reads a file that children can't read, and keeps the result.
    aot_cache.key("", 0)
    return {
        "worker": worker,
        "applier": applier,
        "compiler": compile_child,
        "checkpointer": checkpointer,
        "repeater": repeater,
    }


class Zygote:
    def __init__(self, control: socket.socket, arguments: Arguments, modules: dict[str, ModuleType]) -> None:
        self._control = control
        self._arguments = arguments
        self._modules = modules
        self._children: dict[int, tuple[int, int]] = {}
        """By pidfd: the front's id of the child, and the child's pid."""
        self._database = Path(arguments.settings.state, wal.FILE)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> None:
        """Serve until the front closes its end. Raises: BrokenPipeError, ConnectionResetError, when it does so in the
        middle of a message."""
        # Before the first order, as that may be for a checkpointer, which reads the log within a limit of its own while
        # workers wait for it. What fails here is tried again, and said, once a worker is asked for.
        self._unrecovered()
        while True:
            for descriptor, _ in self._poll.poll():
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
            # The kernel leaves out a descriptor for which there is no room.
            self._not_born(birth, "the zygote has too many open files")
            return True
        if birth.kind in _BY_LIBSQL and (why := self._unrecovered()):
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
        pidfd = -1
        try:
            pidfd = os.pidfd_open(pid)
            faults.reach(f"edge.birth.{birth.kind}.after")
            socket.send_fds(self._control, [frames.encode_json(Born(birth.id, pid))], [pidfd])
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            # It has too many open files, or this user's processes have too many descriptors in flight.
            if pidfd >= 0:
                os.close(pidfd)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._not_born(birth, f"the zygote can't watch over a process: {error}")
            return True
        self._children[pidfd] = (birth.id, pid)
        self._poll.register(pidfd, select.POLLIN)
        return True

    def _unrecovered(self) -> str:
        """Recover a log that was left and that no process has open; return why that failed, or an empty string."""
        # Imported late, like everything that children use: `_imports` has tried it, and would have reported a failure.
        from edge_runtime.children import checkpointer

        try:
            if checkpointer.is_left(self._database):
                self._control.send(frames.encode_json(Recovering()))
                checkpointer.recover(self._arguments.settings)
        except (BrokenPipeError, ConnectionResetError):
            raise
        except (checkpointer.Unreadable, OSError) as error:
            return str(error)
        return ""

    def _not_born(self, birth: Birth, why: str) -> None:
        self._control.send(frames.encode_json(BirthFailed(birth.id, why)))

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        child, pid = self._children.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self._control.send(frames.encode_json(Died(child, status)))

    def _child(self, birth: Birth, descriptor: int, parent: int) -> None:
        """Run the child; never return."""
        code = 1
        try:
            fence.die_with_parent(parent)
            self._control.close()
            for pidfd in self._children:
                os.close(pidfd)
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
            # The front has exited, or no longer waits for the answer.
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
