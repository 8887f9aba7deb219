"""The zygote: a process of one thread that has imported everything, forks the front's children, and reaps them.

The front has threads, so a fork from it would be unsafe; a fresh Python takes 80 ms, a fork of this one 3. It is
started by exec, talks SOCK_SEQPACKET with the front (`Birth` with the child's socket in; `Up`, `Unfit`, `Born` with a
pidfd, `Died` out), and never opens libsql or runs a guest itself, but for one of our own (`rehearsal`).
"""

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
from msgspec import Struct

from control import faults

from . import fence, frames
from .allowed import Kind
from .page import open_slot

MESSAGE_BYTES: Final = 65_536


class Arguments(Struct, frozen=True):
    control: int
    """Descriptor of the socket to the front."""
    page: int
    """Descriptor of the page that it shares with its children."""
    parent: int
    settings: frames.ChildSettings


class Birth(Struct, frozen=True):
    """Fork a child; its socket comes along."""

    id: int
    kind: Kind
    slot: int = 0
    background: bool = False


class Up(Struct, frozen=True, tag="up"):
    lacking: tuple[str, ...] = ()
    """Pieces of the fence that this machine doesn't have, in words."""


class Unfit(Struct, frozen=True, tag="unfit"):
    """No guest can run on this machine as it is."""

    message: str


class Born(Struct, frozen=True, tag="born"):
    """The child's pidfd comes along."""

    id: int
    pid: int


class Died(Struct, frozen=True, tag="died"):
    id: int
    status: int
    """As from waitpid."""


News = Up | Unfit | Born | Died
decode_news: Final = msgspec.json.Decoder(News).decode
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
        fence.prepare(Path(arguments.settings.state))
    except Exception as error:
        control.send(frames.encode_json(Unfit(str(error))))
        return
    if lacking and arguments.settings.fence == "required":
        control.send(frames.encode_json(Unfit(_unfenced(lacking))))
        return
    gc.collect()
    gc.freeze()
    control.send(frames.encode_json(Up(lacking)))
    Zygote(control, arguments, children).run()


def _unfenced(lacking: tuple[str, ...]) -> str:
    return (
        f"this machine can't fence in what runs functions. {'. '.join(lacking)}. Whoever breaks out of a function's "
        "sandbox could do there what this user can. To run all the same, with what there is of the fence, set "
        "SKERRY_EDGE_FENCE=partial"
    )


def _imports() -> dict[str, ModuleType]:
    """Everything that a child will use, so that a fork has it already. Errors: whatever makes this machine unfit."""
    from . import applier, compile_child, guest, rehearsal, worker
    from .wasmedge import compile

    guest.prepare()
    rehearsal.rehearse()
    # Looked up once, in a file that children can't read.
    compile.key("", 0)
    return {"worker": worker, "applier": applier, "compiler": compile_child}


class Zygote:
    def __init__(self, control: socket.socket, arguments: Arguments, modules: dict[str, ModuleType]) -> None:
        self._control = control
        self._arguments = arguments
        self._modules = modules
        self._children: dict[int, tuple[int, int]] = {}
        """By pidfd: the front's id of the child, and its pid."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> None:
        """Until the front closes its end."""
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
        pid = os.fork()
        if pid == 0:
            self._child(birth, descriptors[0], me)
        os.close(descriptors[0])
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (birth.id, pid)
        self._poll.register(pidfd, select.POLLIN)
        faults.reach(f"edge.birth.{birth.kind}.after")
        socket.send_fds(self._control, [frames.encode_json(Born(birth.id, pid))], [pidfd])
        return True

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
            if birth.kind == "worker":
                fence.without_haste()
            if birth.background:
                fence.in_background()
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
