"""A zygote whose children are taken over the moment that they are fenced: they do what a test asks of them.

Run in place of `edge_runtime.children.zygote`. With SKERRY_TAKEN_OVER_UID it is an ordinary user's, once it has
imported all.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from control.protocol import faults
from edge_runtime.children import applier, checkpointer, compile_child, repeater, worker, zygote
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence

ASK = 90
DONE = 91
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Ask(msgspec.Struct, frozen=True):
    what: str
    arguments: list[Any]


class Answer(msgspec.Struct, frozen=True):
    refused: str
    """Name of the errno; empty where it worked."""
    said: Any = None


def raw(number: int, *arguments: int | str) -> int:
    """A system call by its number."""
    given = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a.encode()) for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def open_file(path: str, flags: int) -> str:
    descriptor = os.open(path, flags, 0o600)
    try:
        return repr(os.read(descriptor, 16)) if not flags & os.O_WRONLY else ""
    finally:
        os.close(descriptor)


def write(descriptor: int, path: str) -> None:
    os.write(descriptor, path.encode())


def connect(family: int, address: Any) -> None:
    with socket.socket(family) as made:
        made.connect(tuple(address) if isinstance(address, list) else address)


def shell(path: str) -> None:
    os.execv(path, [path, "-c", "exit 0"])


def spawn(path: str) -> None:
    os.waitpid(os.posix_spawn(path, [path, "-c", "exit 0"], {}), 0)


def fork() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def thread() -> None:
    made = threading.Thread(target=lambda: None)
    try:
        made.start()
    except RuntimeError as error:
        raise OSError(errno.EPERM, str(error)) from None
    made.join()


def take(size: int, flags: int) -> None:
    """Map memory that may be written, and not touch it."""
    mmap.mmap(-1, size, flags=flags).close()


def eat(size: int) -> None:
    """Take memory, and write to it."""
    eaten = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, mmap.PAGESIZE):
        eaten[at] = 1


def interrupt() -> None:
    """A system call of a 32-bit program, by `int 0x80`: getpid."""
    code = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def owner(descriptor: int, pid: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, pid)


def hand_on() -> None:
    """Duplicate a descriptor, as a way round a rule on its number."""
    fcntl.fcntl(2, fcntl.F_DUPFD, 100)


def unlock(path: str) -> None:
    """Let go a lock that another holds too, by the descriptor that was inherited."""
    there = os.stat(path)
    # What it has inherited may have a higher number than it could open itself.
    for descriptor in range(4096):
        try:
            here = os.fstat(descriptor)
        except OSError:
            continue
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return
    raise LookupError(path)


ATTACKS: dict[str, Callable[..., Any]] = {
    "raw": raw, "open": open_file, "write": write, "connect": connect, "shell": shell, "spawn": spawn, "fork": fork,
    "thread": thread, "take": take, "eat": eat, "kill": os.kill, "signal": os.pidfd_open, "owner": owner,
    "unlock": unlock, "hand_on": hand_on, "rename": os.rename, "link": os.link, "symlink": os.symlink,
    "reach": faults.reach, "interrupt": interrupt,
}  # fmt: skip


def obey(sock: socket.socket) -> bool:
    """Do what is asked, until nobody asks any more; whether it is to go on as if nothing had been."""
    reader = FrameReader(sock)
    while (frame := reader.next()) is not None:
        asked = msgspec.json.decode(frame.body, type=Ask)
        if asked.what == "go_on":
            frames.send_json(sock, 0, DONE, Answer(""))
            return True
        try:
            answer = Answer("", ATTACKS[asked.what](*asked.arguments))
        except OSError as error:
            answer = Answer(errno.errorcode[error.errno or 0])
        except ValueError as error:
            answer = Answer("ValueError", str(error))
        frames.send_json(sock, 0, DONE, answer)
    return False


def main(argument: str) -> None:
    serve = {module: module.serve for module in (worker, applier, checkpointer, compile_child, repeater)}
    sealing = fence.seal
    taken: list[socket.socket] = []

    def seal(kind: Any, writer_lock: int | None = None) -> None:
        sealing(kind, writer_lock)
        # What recovers the database's log takes no orders.
        if taken and not obey(taken[0]):
            os._exit(0)

    def compile_artifact(*_: object) -> None:
        """By the module that it compiles."""
        frames.send_json(taken[0], 0, DONE, Answer(""))
        obey(taken[0])
        os._exit(0)

    compile_child.compile_artifact = compile_artifact  # type: ignore[assignment]

    for module, real in serve.items():

        def served(sock: socket.socket, *more: Any, real: Callable[..., None] = real) -> None:
            taken.append(sock)
            real(sock, *more)

        module.serve = served  # type: ignore[attr-defined]
    fence.seal = seal
    imports = zygote._imports

    def imported(step: Callable[[], object]) -> dict[str, Any]:
        """Import all as root, since another user may not reach this folder; then be that user."""
        made = imports(step)
        if uid := int(os.environ.get("SKERRY_TAKEN_OVER_UID", "0")):
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            # As a process that this user has started; what changes its user has no files in /proc of its own.
            _libc.prctl(4, 1, 0, 0, 0)
        return made

    zygote._imports = imported
    zygote.main(argument)


if __name__ == "__main__":
    main(sys.argv[1])
