"""What a fork of `program_template` does to be a program: it takes on all that an exec would give it, runs the
program's code as Python's own start does, and ends as Python does."""

import atexit
import builtins
import contextlib
import ctypes
import fcntl
import gc
import io
import os
import runpy
import signal
import socket
import sys
import threading
import time
from types import ModuleType
from typing import IO, Final, NoReturn

from control.protocol import faults
from tests.support import forked_programs, kernel_command_line
from tests.support.program_request import Request

IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a template ignores: where they come for its whole process group, they are meant for the programs."""
_PR_SET_PDEATHSIG: Final = 1
_inherited: Final[dict[signal.Signals, object]] = {}
"""What is done at these signals in the process that asks for programs, as in one that exec starts."""


def ignore() -> None:
    """Have this process, a template, ignore them; its programs do at them what it did before."""
    for number in IGNORED:
        _inherited[number] = signal.getsignal(number)
        signal.signal(number, signal.SIG_IGN)


def run(request: Request, given: list[int], asked: socket.socket | None) -> NoReturn:
    """Be the program, and end. `given` are the descriptors of the request, in its order; `asked` is the end of a socket
    on which the program's own template takes requests."""
    status = 1
    interrupted = False
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    try:
        _begin(request, given, asked)
        sys.modules["__main__"] = main
        if request.module:
            _forget(request.module)
            runpy._run_module_as_main(request.module)  # type: ignore[attr-defined]
        else:
            exec(compile(request.code, "<string>", "exec"), main.__dict__)
        status = 0
    except SystemExit as end:
        if end.code is None:
            status = 0
        elif isinstance(end.code, int):
            status = end.code & 0xFF
        else:
            print(end.code, file=sys.stderr)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        # Without this function, which isn't the program's.
        own = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        sys.excepthook(type(own), own, own.__traceback__)
    _end(status, interrupted, main)


def _begin(request: Request, given: list[int], asked: socket.socket | None) -> None:
    if asked is not None:
        given.append(asked.detach())
    above = max([*request.descriptors, *given]) + 1
    for at, each in enumerate(given):
        given[at] = fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above)
        os.close(each)
    for each, number in zip(given, request.descriptors, strict=False):
        os.dup2(each, number)
        os.close(each)
    if request.new_session:
        os.setsid()
    elif request.group >= 0:
        os.setpgid(0, request.group)
    os.chdir(request.folder)
    os.umask(request.umask)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    kernel_command_line.tell(request.words, request.environment)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN if _inherited.get(number) is signal.SIG_IGN else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _streams(unbuffered=bool(request.environment.get("PYTHONUNBUFFERED")))
    sys.dont_write_bytecode = bool(request.environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.orig_argv[:] = request.words
    sys.argv[:] = request.arguments
    sys.path[:0] = request.paths
    faults._FOLDER = os.environ.get("SKERRY_FAULTS")
    if library := os.environ.get("LD_PRELOAD"):
        ctypes.CDLL(library).begin()
    forked_programs.real_compilation = request.real_compilation
    if asked is not None:
        forked_programs.use_nested(given[-1])
    if request.death is not None:
        number, parent = request.death
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent is gone")


def _streams(*, unbuffered: bool) -> None:
    """Make the standard streams again, since what they were made for was another descriptor."""

    def made(number: int, like: io.TextIOWrapper, mode: str) -> io.TextIOWrapper:
        raw: IO[bytes] = os.fdopen(number, mode, 0 if unbuffered and mode == "wb" else -1, closefd=False)
        return io.TextIOWrapper(
            raw,
            like.encoding,
            like.errors,
            "\n" if mode == "wb" else None,
            line_buffering=not unbuffered and (number == 2 or (mode == "wb" and os.isatty(number))),
            write_through=unbuffered,
        )

    sys.stdin = sys.__stdin__ = made(0, sys.stdin, "rb")  # type: ignore[assignment,arg-type,misc]
    sys.stdout = sys.__stdout__ = made(1, sys.stdout, "wb")  # type: ignore[assignment,arg-type,misc]
    sys.stderr = sys.__stderr__ = made(2, sys.stderr, "wb")  # type: ignore[assignment,arg-type,misc]


def _forget(module: str) -> None:
    """Have a module that is run by ``-m`` not be there: Python warns of one that was imported before."""
    found = sys.modules.get(module)
    name = f"{module}.__main__" if hasattr(found, "__path__") else module
    sys.modules.pop(name, None)


def _end(status: int, interrupted: bool, main: ModuleType) -> NoReturn:
    """End as Python does, but that modules aren't taken down one by one, which takes ten times as long as the fork."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        # What the program's own names keep open is closed, as a database is.
        main.__dict__.clear()
        gc.collect()
        for stream in (sys.stdout, sys.stderr):
            try:
                with contextlib.suppress(AttributeError):  # None
                    stream.flush()
            except (OSError, ValueError) as error:
                status = 120
                print(f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}", file=sys.__stderr__)
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        os._exit(status)
