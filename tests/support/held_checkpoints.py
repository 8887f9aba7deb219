"""Holds a process in the middle of a checkpoint: some machine instructions after it has locked out other checkpointers.

`python -m tests.support.held_checkpoints` is told of one checkpoint a line, as JSON: the process, the database, how
many instructions. It says `attached`, then `held`, or `past` where the checkpoint came to its next system call before;
and lets the process go on at the next line, which it answers with `gone on`. Held are PASSIVE checkpoints alone, as
they begin while all of the log's frames are moved. Nothing of the process is changed.
"""

import asyncio
import ctypes
import errno
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edge_runtime import wal

_SEIZE, _INTERRUPT, _SYSCALL, _SINGLESTEP, _GETREGS, _PEEKDATA, _DETACH = 0x4206, 0x4207, 24, 9, 12, 2, 17
_TRACESYSGOOD = 1
_WALL = 0x4000_0000
_SIGTRAP = 5
_FCNTL, _FLOCK = 72, 73
_F_SETLK, _F_WRLCK, _LOCK_UN = 6, 1, 8
_CHECKPOINT_LOCK = 121
"""Its byte in the index."""
_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS]


class _Traced:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.restype = ctypes.c_long
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._registers = _Registers()
        self._ask(_SEIZE, data=_TRACESYSGOOD)
        self._ask(_INTERRUPT)
        os.waitpid(pid, _WALL)

    def _ask(self, request: int, address: int = 0, data: int = 0) -> int:
        ctypes.set_errno(0)
        answer = self._libc.ptrace(request, self._pid, address, data)
        if answer == -1 and ctypes.get_errno():
            raise OSError(ctypes.get_errno(), f"ptrace({request}): {os.strerror(ctypes.get_errno())}")
        return int(answer)

    def _go_on(self, request: int) -> int:
        """The signal by which it stops next."""
        self._ask(request)
        status = os.waitpid(self._pid, _WALL)[1]
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(f"process {self._pid} has ended")
        return os.WSTOPSIG(status)

    def registers(self) -> _Registers:
        self._ask(_GETREGS, data=ctypes.addressof(self._registers))
        return self._registers

    def system_call(self) -> _Registers:
        """The registers at the end of its next system call."""
        while True:
            if self._go_on(_SYSCALL) == _SIGTRAP | 0x80:
                at = self.registers()
                # Until the kernel has an answer, this is what stands for one.
                if ctypes.c_long(at.rax).value != -errno.ENOSYS:
                    return at

    def locks_checkpoints(self, at: _Registers) -> bool:
        """Whether the system call has locked out other checkpointers."""
        if at.orig_rax != _FCNTL or at.rsi != _F_SETLK or at.rax:
            return False
        kind = self._ask(_PEEKDATA, at.rdx) & 0xFFFF
        return kind == _F_WRLCK and self._ask(_PEEKDATA, at.rdx + 8) == _CHECKPOINT_LOCK

    def step(self, instructions: int) -> bool:
        """Whether it made so many before its next system call."""
        for _ in range(instructions):
            self._go_on(_SINGLESTEP)
            if self._ask(_PEEKDATA, self.registers().rip) & 0xFFFF == 0x050F:
                return False
        return True

    def let_go(self) -> None:
        self._ask(_DETACH)


def _hold(pid: int, database: Path, instructions: int) -> None:
    traced = _Traced(pid)
    print("attached", flush=True)
    has_turn = False
    while True:
        at = traced.system_call()
        if at.orig_rax == _FLOCK and not at.rax:
            has_turn = not at.rsi & _LOCK_UN
        if not has_turn and traced.locks_checkpoints(at):
            index = wal.read(database)
            if index is not None and 0 < index.frames == index.backfilled:
                break
    print("held" if traced.step(instructions) else "past", flush=True)
    sys.stdin.readline()
    traced.let_go()
    print("gone on", flush=True)


def main() -> None:
    """Hold checkpoints as long as stdin has lines."""
    for line in sys.stdin:
        pid, database, instructions = json.loads(line)
        _hold(pid, Path(database), instructions)


class HeldCheckpoints:
    """The program, asked by a test: `holder` starts and ends it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    async def attach(self, pid: int, database: Path, instructions: int) -> None:
        """Have the next such checkpoint of a process held after so many instructions."""
        self._in.write(json.dumps([pid, str(database), instructions]).encode() + b"\n")
        assert await self._out.readline() == b"attached\n"

    async def held(self) -> bool:
        """Wait until one is held; whether it was in the middle, and not past its look at the index."""
        said = await self._out.readline()
        assert said in (b"held\n", b"past\n"), "the process has ended"
        return said == b"held\n"

    async def let_go(self) -> None:
        """Have it go on."""
        self._in.write(b"\n")
        assert await self._out.readline() == b"gone on\n"


@asynccontextmanager
async def holder() -> AsyncIterator[HeldCheckpoints]:
    """Start the program, and end it; what it holds goes on then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.held_checkpoints", stdin=PIPE, stdout=PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        yield HeldCheckpoints(process)
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    main()
