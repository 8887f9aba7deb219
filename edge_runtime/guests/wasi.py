"""WASI preview 1 without access to the host: stdio in memory, arguments, environment, clocks, random bytes and timers.
There are no files or sockets; the functions for them return the errno that says so.

Every function of preview 1 is here (`abi.imports`), so that any preview 1 module links. A function takes unsigned
integers as the guest passed them, and returns an errno. One that gets an address outside the guest's memory raises
IndexError, and the caller then returns `FAULT` to the guest.
"""

import itertools
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from edge_runtime.guests.abi.imports import WASI_SIGNATURES
from edge_runtime.ipc import log_lines

SUCCESS, BADF, FAULT, INVAL, NOTDIR, NOTSOCK, NOTSUP, SPIPE, NOTCAPABLE = 0, 8, 21, 28, 54, 57, 58, 70, 76

_MOST_VECTORS = 1024
_MOST_SUBSCRIPTIONS = 1024
_RANDOM_CHUNK = 1 << 16
_LONGEST = 3_600_000_000_000
"""The longest sleep, in nanoseconds."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_VECTOR = struct.Struct("<II")
_FDSTAT = struct.Struct("<BxHxxxxQQ")
_FILESTAT = struct.Struct("<QQBxxxxxxxQQQQQ")
_SUBSCRIPTION = struct.Struct("<QBxxxxxxxIxxxxQQHxxxxxx")
_EVENT = struct.Struct("<QHBxxxxxQHxxxxxx")

_RIGHTS: Final = (1 << 1, 1 << 6, 1 << 6)
"""The rights of stdin (fd_read), stdout and stderr (fd_write)."""
_STREAMS: Final = {0: 0, 1: 1, 2: 2}
"""The stream of each descriptor at the start of a call."""

_REALTIME, _MONOTONIC, _PROCESS_TIME, _THREAD_TIME = range(4)
_CLOCK, _READ, _WRITE = range(3)
_ABSOLUTE, _HANGUP = 1, 1


class Exit(Exception):
    """The guest called proc_exit, which isn't an error in itself: code 0 is a normal exit."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


def exit_code(code: int) -> int:
    """Return an exit code as programs write it, as a signed number: exit(-1) arrives as 4294967295."""
    return code - ((code & 0x80000000) << 1)


class OutputTooLarge(Exception):
    """The guest wrote more to stdout than it may."""


class GuestMemory(Protocol):
    """The operations on a guest's memory that the functions use; `wasmedge.Memory` has them."""

    buffer: Any
    size: int

    def need(self, end: int) -> None: ...
    def read(self, start: int, length: int) -> bytes: ...
    def write(self, start: int, data: bytes) -> None: ...


class LogCopy(Protocol):
    """A copy of what the running call wrote to stderr, outside this process."""

    def add(self, text: bytes | memoryview) -> None: ...

    def lose(self, count: int) -> None: ...


class Strings:
    """Strings as args_get and environ_get return them: their bytes, each string ended by NUL, and the offset of
    each."""

    __slots__ = ("blob", "count", "offsets", "pointers")

    def __init__(self, strings: Sequence[str]) -> None:
        """`strings` contain no NUL and only code points below 256, one for each byte."""
        self.count = len(strings)
        self.blob = ("\0".join(strings) + "\0").encode("latin-1") if strings else b""
        self.offsets = list(itertools.accumulate([len(text) + 1 for text in strings[:-1]], initial=0))[: self.count]
        self.pointers = struct.Struct(f"<{self.count}I")


class Wasi:
    """The functions, for the one running guest; `begin` sets them up for a call."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._stdout, self._stderr = bytearray(), bytearray()
        self.copy: LogCopy | None = None
        """A second place for stderr, which outlives this process; None if nobody would read it."""
        self._streams: Mapping[int, int] = _STREAMS
        self.begin(Strings(()), Strings(()), b"", 0, 0)

    def begin(self, args: Strings, environ: Strings, stdin: bytes, stdout_limit: int | None, stderr_limit: int) -> None:
        """Start a call. Limits are in bytes: beyond the first the guest is stopped, and beyond the second stderr is
        cut. With no limit for stdout, the guest answers in another way, and stdout is added to stderr."""
        self._args, self._environ, self._stdin, self._position = args, environ, stdin, 0
        # Not a list of pieces: for a guest that writes two bytes at a time that would take twenty times the memory.
        if self._stdout:
            self._stdout = bytearray()
        if self._stderr:
            self._stderr = bytearray()
        self._answers = stdout_limit is not None
        self._stdout_limit = self._stdout_room = stdout_limit or 0
        self._stderr_room = stderr_limit
        self._stderr_lost = 0
        self._streams = _STREAMS
        self._started = time.monotonic_ns()

    @property
    def stdout(self) -> bytes:
        return bytes(self._stdout)

    @property
    def stderr(self) -> bytes:
        """What the guest wrote to stderr, cut at its limit, with a line that says how much is missing."""
        return log_lines.with_loss(bytes(self._stderr), self._stderr_lost)

    def log(self, prefix: bytes, message: bytes) -> None:
        """Add lines to stderr, each with the prefix of its level (`ipc.log_lines`), and on a separate line."""
        begun = self._stderr and not self._stderr.endswith(b"\n") and self._stderr_room
        start = b"\n" if begun else b""
        lines = prefix + message.removesuffix(b"\n").replace(b"\n", b"\n" + prefix)
        self._keep(b"%b%b\n" % (start, lines))

    def _keep(self, text: bytes | memoryview) -> None:
        """Add the guest's output to stderr as far as there is room, and to the copy that outlives this process."""
        kept = text[: self._stderr_room]
        self._stderr_room -= len(kept)
        self._stderr += kept
        lost = len(text) - len(kept)
        self._stderr_lost += lost
        if self.copy is not None:
            if len(kept):
                self.copy.add(kept)
            if lost:
                self.copy.lose(lost)

    def functions(self) -> dict[str, tuple[tuple[str, str], Callable[..., int | None]]]:
        """Return every function with its signature, for a host module."""
        return {name: (signature, getattr(self, name)) for name, signature in WASI_SIGNATURES.items()}

    # Arguments and environment

    def args_sizes_get(self, count: int, size: int) -> int:
        return self._sizes(self._args, count, size)

    def args_get(self, pointers: int, blob: int) -> int:
        return self._strings(self._args, pointers, blob)

    def environ_sizes_get(self, count: int, size: int) -> int:
        return self._sizes(self._environ, count, size)

    def environ_get(self, pointers: int, blob: int) -> int:
        return self._strings(self._environ, pointers, blob)

    def _sizes(self, strings: Strings, count: int, size: int) -> int:
        memory = self._memory
        if (count if count > size else size) + 4 > memory.size:
            memory.need(max(count, size) + 4)
        _U32.pack_into(memory.buffer, count, strings.count)
        _U32.pack_into(memory.buffer, size, len(strings.blob))
        return SUCCESS

    def _strings(self, strings: Strings, pointers: int, blob: int) -> int:
        if not strings.count:
            return SUCCESS
        memory = self._memory
        end = blob + len(strings.blob)
        if pointers + 4 * strings.count > memory.size or end > memory.size:
            memory.need(pointers + 4 * strings.count)
            memory.need(end)
        memory.buffer[blob:end] = strings.blob
        strings.pointers.pack_into(memory.buffer, pointers, *[blob + offset for offset in strings.offsets])
        return SUCCESS

    # Clocks, random bytes, the process

    def clock_res_get(self, clock: int, result: int) -> int:
        if clock > _THREAD_TIME:
            return INVAL
        self._memory.write(result, _U64.pack(1))
        return SUCCESS

    def clock_time_get(self, clock: int, _precision: int, result: int) -> int:
        if clock > _THREAD_TIME:
            return INVAL
        self._memory.write(result, _U64.pack(self._now(clock)))
        return SUCCESS

    def _now(self, clock: int) -> int:
        # Monotonic and CPU time count from the start of the call: guests don't need to know the host's uptime.
        return time.time_ns() if clock == _REALTIME else time.monotonic_ns() - self._started + 1

    def random_get(self, start: int, length: int) -> int:
        if length:
            self._memory.need(start + length)
        for offset in range(0, length, _RANDOM_CHUNK):
            self._memory.write(start + offset, os.urandom(min(_RANDOM_CHUNK, length - offset)))
        return SUCCESS

    def proc_exit(self, code: int) -> None:
        raise Exit(exit_code(code))

    def proc_raise(self, _signal: int) -> int:
        return NOTSUP

    def sched_yield(self) -> int:
        return SUCCESS

    def poll_oneoff(self, subscriptions: int, events: int, count: int, result: int) -> int:
        """Return at once if stdio is polled, which is always ready; otherwise sleep until the first timer, and report
        all timers that are due then. The call's time limit runs on meanwhile."""
        if not 0 < count <= _MOST_SUBSCRIPTIONS:
            return INVAL
        memory = self._memory
        memory.need(events + _EVENT.size * count)
        memory.need(result + 4)
        requested = list(_SUBSCRIPTION.iter_unpack(memory.read(subscriptions, _SUBSCRIPTION.size * count)))
        for _, tag, clock, _, _, flags in requested:
            if tag > _WRITE or (tag == _CLOCK and (clock > _THREAD_TIME or flags > _ABSOLUTE)):
                return INVAL
        ready = [self._ready(user, tag, fd) for user, tag, fd, *_ in requested if tag != _CLOCK]
        if not ready:
            left = [self._left(clock, timeout, flags) for _, _, clock, timeout, _, flags in requested]
            soonest = max(0, min(left))
            # No call may run for an hour, and time.sleep refuses sleeps longer than the platform supports.
            time.sleep(min(soonest, _LONGEST) / 1e9)
            ready = [
                (ask[0], SUCCESS, _CLOCK, 0, 0) for ask, wait in zip(requested, left, strict=True) if wait <= soonest
            ]
        for position, event in enumerate(ready):
            _EVENT.pack_into(memory.buffer, events + _EVENT.size * position, *event)
        _U32.pack_into(memory.buffer, result, len(ready))
        return SUCCESS

    def _ready(self, user: int, tag: int, fd: int) -> tuple[int, int, int, int, int]:
        stream = self._streams.get(fd)
        if stream is None or (tag == _READ) != (stream == 0):
            return user, BADF, tag, 0, 0
        left = len(self._stdin) - self._position if tag == _READ else 1
        return user, SUCCESS, tag, left, 0 if left else _HANGUP

    def _left(self, clock: int, timeout: int, flags: int) -> int:
        """Return the nanoseconds until a timer is due."""
        return timeout - self._now(clock) if flags & _ABSOLUTE else timeout

    # stdio

    def fd_read(self, fd: int, vectors: int, count: int, result: int) -> int:
        if self._streams.get(fd) != 0:
            return BADF
        if count > _MOST_VECTORS:
            return INVAL
        memory, stdin, position = self._memory, self._stdin, self._position
        after = vectors + 8 * count
        if after > memory.size or result + 4 > memory.size:
            memory.need(max(after, result + 4))
        for offset in range(vectors, after, 8):
            start, length = _VECTOR.unpack_from(memory.buffer, offset)
            piece = stdin[position : position + length]
            if not piece:
                if length:
                    break
                continue
            memory.write(start, piece)
            position += len(piece)
        _U32.pack_into(memory.buffer, result, position - self._position)
        self._position = position
        return SUCCESS

    def fd_write(self, fd: int, vectors: int, count: int, result: int) -> int:
        stream = self._streams.get(fd)
        if not stream:
            return BADF
        if count > _MOST_VECTORS:
            return INVAL
        memory = self._memory
        after = vectors + 8 * count
        if after > memory.size or result + 4 > memory.size:
            memory.need(max(after, result + 4))
        written = 0
        for offset in range(vectors, after, 8):
            start, length = _VECTOR.unpack_from(memory.buffer, offset)
            if not length:
                continue
            end = start + length
            if end > memory.size:
                try:
                    memory.need(end)
                except IndexError:
                    # The guest learns how much was written before this vector; otherwise it would write that again.
                    if not written:
                        raise
                    break
            if stream == 1 and self._answers:
                self._stdout_room -= length
                if self._stdout_room < 0:
                    raise OutputTooLarge(f"it wrote more than {self._stdout_limit} bytes to stdout")
                self._stdout += memory.buffer[start:end]
            else:
                self._keep(memory.buffer[start:end])
            written += length
        _U32.pack_into(memory.buffer, result, written & 0xFFFFFFFF)
        return SUCCESS

    def _not_open(self, fd: int) -> int:
        return SUCCESS if fd in self._streams else BADF

    def fd_close(self, fd: int) -> int:
        error = self._not_open(fd)
        if not error:
            self._streams = {number: stream for number, stream in self._streams.items() if number != fd}
        return error

    def fd_renumber(self, source: int, target: int) -> int:
        """Make the target, which must be open, refer to the source's stream, and close the source."""
        if error := self._not_open(source) or self._not_open(target):
            return error
        streams = {**self._streams}
        streams[target] = streams.pop(source)
        self._streams = streams
        return SUCCESS

    def fd_fdstat_get(self, fd: int, result: int) -> int:
        stream = self._streams.get(fd)
        if stream is None:
            return BADF
        # File type 0 (unknown): a libc doesn't take it for a terminal.
        self._memory.write(result, _FDSTAT.pack(0, 0, _RIGHTS[stream], _RIGHTS[stream]))
        return SUCCESS

    def fd_filestat_get(self, fd: int, result: int) -> int:
        if error := self._not_open(fd):
            return error
        self._memory.write(result, _FILESTAT.pack(0, fd, 0, 1, 0, 0, 0, 0))
        return SUCCESS

    def fd_fdstat_set_flags(self, fd: int, flags: int) -> int:
        return self._not_open(fd) or (NOTSUP if flags else SUCCESS)

    def fd_fdstat_set_rights(self, fd: int, base: int, inheriting: int) -> int:
        """Refuse to change rights: adding isn't allowed, and removing isn't supported."""
        if error := self._not_open(fd):
            return error
        have = _RIGHTS[self._streams[fd]]
        if (base | inheriting) & ~have:
            return NOTCAPABLE
        return SUCCESS if base == inheriting == have else NOTSUP

    # What files can do and streams can't

    def _seek(self, fd: int, *_: int) -> int:
        return self._not_open(fd) or SPIPE

    fd_seek = fd_tell = fd_pread = fd_pwrite = fd_advise = fd_allocate = _seek

    def _file(self, fd: int, *_: int) -> int:
        return self._not_open(fd) or INVAL

    fd_sync = fd_datasync = fd_filestat_set_size = fd_filestat_set_times = _file

    def _directory(self, fd: int, *_: int) -> int:
        return self._not_open(fd) or NOTDIR

    fd_readdir = path_create_directory = path_filestat_get = path_filestat_set_times = path_link = _directory
    path_open = path_readlink = path_remove_directory = path_rename = path_unlink_file = _directory

    def path_symlink(self, _target: int, _length: int, fd: int, *_: int) -> int:
        return self._directory(fd)

    fd_prestat_dir_name = _directory

    def fd_prestat_get(self, *_: int) -> int:
        # libc tries 3, 4, … until it gets this errno: there are no preopened folders.
        return BADF

    def _socket(self, fd: int, *_: int) -> int:
        return self._not_open(fd) or NOTSOCK

    sock_accept = sock_recv = sock_send = sock_shutdown = _socket
