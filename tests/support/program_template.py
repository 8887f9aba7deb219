"""A process that has made the imports of our programs, and forks one for each request. `forked_programs` starts and
asks it; `program_start` is what a fork does then.

By clone's CLONE_PARENT a fork is the child of the process that asks, not of this one: who started it waits for it, gets
its status, and is its parent for the kernel, as after an exec.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_runtime.children import immortal
from edge_runtime.sandbox import fence
from tests.support import forked_programs, program_start
from tests.support.program_request import Kind, Request

REQUEST_BYTES: Final = 1 << 20
"""Bytes of the longest request."""
INHERITED: Final = 64
"""Descriptors that come with a request at most."""
UP: Final = b"up"
"""The first answer: requests can come."""
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_PR_GET_TID_ADDRESS: Final = 40
_libc: Final = ctypes.PyDLL(None, use_errno=True)
"""The C library, called with Python's lock: what is called here is over at once, and a fork has it as well."""


def serve(descriptor: int, parent: int, kind: Kind, code: str) -> None:
    """Fork programs until the asking process, which is the parent, closes its end or ends. It returns in no program.

    The first folder of `sys.path` is for this module's own imports alone. `code` is the file that has what LLVM has
    made (`kept_code`); where it is empty, the programs keep none.
    """
    fence.die_with_parent(parent)
    program_start.ignore()
    requests = socket.socket(fileno=descriptor)
    _thread_id_address()
    _IMPORTS[kind]()
    if code:
        kept_code = importlib.import_module("tests.support.kept_code")
        kept_code.use(Path(code))
    del sys.path[0]
    gc.collect()
    # A fork that counts references to what all have would copy the pages that this lies in.
    immortal.make_immortal()
    gc.freeze()
    requests.send(UP)
    _answer(requests)


def _nest() -> socket.socket:
    """Fork this process once more, to be what forks programs for this one; return the socket that it is asked on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork():
        theirs.close()
        return ours
    fence.die_with_parent(parent)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.dup2(theirs.detach(), 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    _answer(socket.socket(fileno=3))
    os._exit(0)


def _answer(requests: socket.socket) -> None:
    """Fork a program for each request, and answer with its process id, until the other end is closed."""
    while True:
        request, given, _, _ = socket.recv_fds(requests, REQUEST_BYTES, INHERITED)
        if not request:
            return
        pid = _fork()
        if pid == 0:
            requests.close()
            wanted = Request(**json.loads(request))
            # Before anything of the program is open in this process.
            program_start.run(wanted, given, _nest() if wanted.starts_others else None)
        for each in given:
            os.close(each)
        requests.send(b"%d" % pid)


def _fork() -> int:
    """As `os.fork`, but that the parent of the child is the parent of this process.

    Raises: OSError, when the kernel makes none.
    """
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | int(signal.SIGCHLD)
    machine = os.uname().machine
    address = _thread_id_address()
    # After flags and stack come: the parent's and the child's place for a thread id, thread-local storage.
    rest = [0, address, 0] if machine == "x86_64" else [0, 0, address]
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_libc.syscall(_CLONE[machine], *map(ctypes.c_long, [flags, 0, *rest])))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def _thread_id_address() -> int:
    """Where the C library keeps this thread's id, which the kernel has to set in a fork, as the library's own does.

    Raises: OSError, when the kernel doesn't tell.
    """
    found = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(found), 0, 0, 0) != 0 or not found.value:
        raise OSError(ctypes.get_errno(), "the kernel doesn't tell where the thread's id is kept")
    return found.value


def _import_nodes() -> None:
    for name in (
        "asyncio",
        "edge_runtime.children.zygote",
        "edge_runtime.cli.main",
        "edge_runtime.front",
        "edge_runtime.guests.function_code",
        "edge_runtime.oneshot.check",
        "edge_runtime.oneshot.check_probes",
        "edge_runtime.oneshot.check_schema",
        "edge_runtime.oneshot.fresh_calls",
        "edge_runtime.oneshot.single_call",
        "edge_runtime.sync.agent",
        "edge_runtime.sync.identity",
    ):
        importlib.import_module(name)


def _import_programs() -> None:
    _import_nodes()
    for name in (
        "control.local.embedded",
        "control.local.pki",
        "control.web.server",
        # What the first client of a store, and the first certificate, import.
        "aioboto3.s3.inject",
        "cryptography.hazmat.backends.openssl",
    ):
        importlib.import_module(name)
    import click

    from control.cli.main import skerry
    from edge_runtime.cli.doctor import machine
    from edge_runtime.cli.main import main as skerry_edge

    # What a fork of this process starts is looked up there.
    forked_programs.may_be_forked(machine._LOAD)

    for group in (skerry, skerry_edge):
        for name in group.list_commands(click.Context(group)):
            group.get_command(click.Context(group), name)


def _import_zygotes() -> None:
    from edge_runtime.children import zygote

    zygote._imports()


_IMPORTS: Final[dict[Kind, Callable[[], None]]] = {
    "programs": _import_programs,
    "nodes": _import_nodes,
    "zygotes": _import_zygotes,
}
"""What each kind of programs needs, and no more."""
