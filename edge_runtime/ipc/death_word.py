"""Tells the front at once that a worker ends.

The kernel closes a dead process's sockets only after it has freed its memory, which takes a millisecond or two. Before
that it looks after the locks of each thread that ends: it changes their words, in memory that processes may share, and
wakes who waits for them (robust futexes, set_robust_list(2)). So each worker has one such word in its slot of the
shared page, and a thread of the front waits for the words of all workers (futex_waitv, Linux 5.16).

A worker that runs no call is freed when the processors have nothing better to do (SCHED_IDLE): else the front, and the
worker that takes its place, would wait behind that for a processor. One that runs a call may hold the writer lock, for
which others wait.

A worker may change its word and go on, so whoever is told looks whether the process ends. Where the kernel lacks any of
it, the end shows by the socket alone.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from typing import Final

from edge_runtime.ipc import progress_page

_WAITERS: Final = 1 << 31
"""FUTEX_WAITERS: somebody is to be woken."""
_OF_MACHINE: Final = {"x86_64": (202, 273), "aarch64": (98, 99)}
"""Numbers of the system calls futex and set_robust_list."""
_FUTEX, _SET_ROBUST_LIST = _OF_MACHINE.get(os.uname().machine, (0, 0))
_FUTEX_WAITV: Final = 449
_WAKE: Final = 1
"""FUTEX_WAKE."""
_SIZE_U32: Final = 2
"""FUTEX2_SIZE_U32; without FUTEX2_PRIVATE, as another process changes the word."""
_MOST: Final = 128
"""Words that futex_waitv takes."""
_EXITING: Final = 4
"""PF_EXITING."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_arg: Final = ctypes.c_ulong


class _RobustEntry(ctypes.Structure):
    """struct robust_list."""

    _fields_ = (("next", ctypes.c_void_p),)


class _RobustHead(ctypes.Structure):
    """struct robust_list_head."""

    _fields_ = (("next", ctypes.c_void_p), ("offset", ctypes.c_long), ("pending", ctypes.c_void_p))


class _Waiter(ctypes.Structure):
    """struct futex_waitv."""

    _fields_ = (
        ("value", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


_list: Final = _RobustHead(), _RobustEntry()
"""The kernel reads it when the thread ends, so the process must end by os._exit: it is never freed then."""


def _word(page: memoryview, slot: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_buffer(page.cast("B"), slot * progress_page.SLOT_BYTES + progress_page.DEATH_AT)


def tell_end(page: memoryview, slot: int) -> None:
    """Have the kernel change the slot's word when this thread, the process's main one, ends. glibc's own list of robust
    mutexes is replaced: no worker has any."""
    head, entry = _list
    word = _word(page, slot)
    head.next, entry.next = ctypes.addressof(entry), ctypes.addressof(head)
    head.offset = ctypes.addressof(word) - ctypes.addressof(entry)
    if (
        _SET_ROBUST_LIST
        and _libc.syscall(_SET_ROBUST_LIST, _arg(ctypes.addressof(head)), _arg(ctypes.sizeof(head))) == 0
    ):
        word.value = os.getpid() | _WAITERS


def ends(pid: int) -> bool:
    """Tell whether a process, which the caller still holds, has ended or is about to."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return bool(int(fields[6]) & _EXITING)


def give_way(pid: int) -> None:
    """Have all other processes run before this one, which ends and holds no lock: what waited for its end, or for its
    last answer, needs the processor on which the kernel frees its memory."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


class DeathWatch:
    """Waits for the words of workers, in a thread of its own."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        """By slot: the word's value while its worker lives, and whom to tell of another one."""
        self._changes = ctypes.c_uint32()
        """Counts changes of `_watched`: the thread waits for this word too."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="skerry-deaths", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises: RuntimeError, when the system refuses it."""
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._changed()

    def watch(self, slot: int, pid: int, told: Callable[[], None]) -> None:
        """Have `told` called in the loop once the slot's worker, which is ready, ends or changes its word."""
        alive = pid | _WAITERS
        if _word(self._page, slot).value == alive:
            with self._lock:
                self._watched[slot] = alive, told
            self._changed()

    def forget(self, slot: int) -> None:
        """The slot's worker has ended."""
        with self._lock:
            self._watched.pop(slot, None)

    def _changed(self) -> None:
        self._changes.value += 1
        _libc.syscall(_FUTEX, _arg(ctypes.addressof(self._changes)), _arg(_WAKE), _arg(1))

    def _run(self) -> None:
        own = ctypes.addressof(self._changes)
        while not self._closed:
            with self._lock:
                waiters = [_Waiter(self._changes.value, own, _SIZE_U32)]
                for slot, (alive, told) in tuple(self._watched.items()):
                    word = _word(self._page, slot)
                    if word.value == alive:
                        waiters.append(_Waiter(alive, ctypes.addressof(word), _SIZE_U32))
                        continue
                    del self._watched[slot]
                    if progress_page.read(self._page, slot).state == progress_page.IDLE:
                        give_way(alive & ~_WAITERS)
                    # The loop is closed only when nobody cares any more.
                    with contextlib.suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(told)
            waiters = waiters[:_MOST]
            listed = (_Waiter * len(waiters))(*waiters)
            result = _libc.syscall(_FUTEX_WAITV, listed, _arg(len(waiters)), _arg(0), None, _arg(0))
            if result < 0 and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
                # An older kernel.
                return
