"""The fence: what a process does to itself before it runs a guest or reads untrusted bytes. It sets resource limits,
drops capabilities, and enters Landlock and seccomp.

The parent of the children (the zygote) calls `prepare` once. Each child then calls `enter` before it opens the libsql
file, since libsql starts a thread, which Landlock must hold too; and `seal` after that, since opening the file takes
system calls that a fenced process doesn't get. None of these steps can be undone. What each kind of child may still do
is in `allowlists`. RLIMIT_AS is never set: with a limited address space, WasmEdge can't keep a guest in its sandbox.
"""

import contextlib
import ctypes
import functools
import os
import platform
import resource
import signal
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from control.protocol import faults
from edge_runtime.sandbox import allowlists, landlock, libseccomp
from edge_runtime.sandbox.allowlists import CHILD_KINDS, ProcessKind
from edge_runtime.sandbox.landlock import Access

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_OF_FILES: Final = 1 << 0 | 1 << 1 | 1 << 3
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER. A node that root runs on another user's files keeps its access to them, as
far as Landlock allows."""
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
"""The number of the system call `ioprio_set`, which libc doesn't wrap, by machine."""
_IOPRIO_WHO_PROCESS: Final = 1
_IOPRIO_IDLE: Final = 3 << 13
_libc: Final = ctypes.CDLL(None, use_errno=True)

OPEN_FILES: Final = 256
FILE_BYTES: Final = 64 * 1024**3
"""Bytes of the largest file that a child may write (RLIMIT_FSIZE): the libsql file, or an AOT file."""
DATA_BYTES: Final = 8 * 1024**3
"""Bytes of private memory that a child may have mapped for writing (RLIMIT_DATA); address space that WasmEdge only
reserves doesn't count. The limit is far above two memories of 1 GiB, so that it never refuses a guest's first page:
such a guest would run without its own memory."""
OOM_SCORE: Final = b"500"

_rulesets: Final[dict[ProcessKind, landlock.Ruleset]] = {}
"""The ruleset for each kind of child, made by `prepare`; empty if the kernel has no Landlock."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent exits. `parent` is the pid of the parent at the fork."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent may have exited before the line above.
        os._exit(1)


@functools.cache
def lacking() -> tuple[str, ...]:
    """Return the parts of the fence that this machine doesn't have, each as a sentence."""
    missing = []
    version = landlock.version()
    if version < landlock.NEEDED:
        has = f"version {version}" if version else "none"
        missing.append(
            f"Landlock: the kernel has {has}, version {landlock.NEEDED} (Linux 6.2) is needed; where it is newer, is "
            "`landlock` missing in the kernel's `lsm=`, or forbidden by a container?"
        )
    if why := libseccomp.lacking():
        missing.append(f"seccomp: {why}")
    return tuple(missing)


def prepare(state: Path) -> None:
    """Make what all children share. The parent calls it before it forks; from then on the parent itself has the
    resource limits and no capabilities, and can't gain privileges.

    Raises: OSError, when the kernel refuses a step.
    """
    _set_limits()
    for kind in CHILD_KINDS:
        _filter(kind)
        if landlock.version():
            _rulesets[kind] = landlock.Ruleset(allowlists.files(kind, state) + _fault_points())


def enclose(files: Iterable[tuple[Path, Access]] = ()) -> None:
    """Do what `prepare` and `enter` do, in a process that isn't forked from a prepared parent. `files` are all the
    files that the process can open from here on. The caller must call `seal` afterwards.

    Raises: OSError, when the kernel refuses a step.
    """
    _set_limits()
    _prefer_for_oom_kill()
    narrow(files)


def narrow(files: Iterable[tuple[Path, Access]]) -> None:
    """Reduce the files that this process can open to `files`, as far as it could open them before.

    Raises: OSError, when the kernel refuses.
    """
    if landlock.version():
        ruleset = landlock.Ruleset([*files, *_fault_points()])
        ruleset.enter()
        ruleset.close()


def _fault_points() -> list[tuple[Path, Access]]:
    """Return the folder of the fault points that a test has set, if any: the process must be able to reach it."""
    points = faults.folder()
    return [] if points is None or not points.exists() else [(points, allowlists.WRITE)]


def _set_limits() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_DATA, DATA_BYTES),
    ):
        lower_limit(limit, value)
    _drop_capabilities()


def enter(kind: ProcessKind) -> None:
    """Limit a child to the files of its kind: the first of its two steps.

    Raises: OSError, when the kernel refuses.
    """
    _prefer_for_oom_kill()
    if kind in _rulesets:
        _rulesets[kind].enter()
    for ruleset in _rulesets.values():
        ruleset.close()


def _prefer_for_oom_kill() -> None:
    """Have the kernel's out-of-memory killer choose this process before its parent, whose death would end all
    children."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, OOM_SCORE)
        os.close(descriptor)


def seal(kind: ProcessKind, writer_lock: int | None = None) -> None:
    """Forbid new processes and all system calls except those of `kind`: the second of a child's two steps.
    `writer_lock` is the descriptor of the only file that the process may lock with flock.

    Raises: OSError, when the kernel refuses.
    """
    if kind != "compiler":
        lower_limit(resource.RLIMIT_NPROC, 0)
    filtering = _filter(kind)
    if filtering is not None:
        filtering.add(allowlists.own_rules(os.getpid(), writer_lock))
        filtering.load()


_limited: Final[list[int]] = []
"""SIGXFSZ signals (writes beyond the file size limit) since the last call of `file_limit_was_hit`."""


def limit_files(limit: int) -> None:
    """Limit each file that this process writes to `limit` bytes. A write beyond the limit fails with EFBIG."""
    signal.signal(signal.SIGXFSZ, lambda number, _: _limited.append(number))
    lower_limit(resource.RLIMIT_FSIZE, limit)


def file_limit_was_hit() -> bool:
    """Return whether the limit of `limit_files` has made a write fail since the last call of this function."""
    failed = bool(_limited)
    _limited.clear()
    return failed


def use_batch_scheduling() -> None:
    """Don't preempt the running process when this one gets work (SCHED_BATCH). Otherwise the front would be preempted
    at each call that it hands to a worker, although it can hand over several at once."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def lower_priority() -> None:
    """Lower this process's priority (nice 10): functions' calls come first, and only a release waits for this
    process."""
    with contextlib.suppress(OSError):
        os.nice(10)


def use_idle_scheduling() -> None:
    """Use only processor time that nothing else needs (SCHED_IDLE, nice 19)."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.nice(19)


def use_idle_disk() -> None:
    """Read and write only when no other process wants the disk (I/O class idle), as far as its scheduler has classes.

    A fenced process can't do this any more.
    """
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        _libc.syscall(ctypes.c_long(number), _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


@functools.cache
def _filter(kind: ProcessKind) -> libseccomp.Filter | None:
    """Return the filter for a kind of child, still without `own_rules`; None if there is no seccomp."""
    if libseccomp.lacking():
        return None
    filtering = libseccomp.Filter(otherwise=libseccomp.fail(1))
    filtering.add(allowlists.rules(kind))
    return filtering


def lower_limit(limit: int, value: int) -> None:
    """Set a resource limit of this process to `value`, or to the hard limit if that is lower."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _drop_capabilities() -> None:
    """Drop all capabilities except those about files (`_OF_FILES`). An ordinary user has none anyway."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    have = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, have), "capget")
    effective, permitted = struct.unpack_from("=II", have.raw)
    kept = struct.pack("=6I", effective & _OF_FILES, permitted & _OF_FILES, 0, 0, 0, 0)
    _checked(_libc.capset(header, kept), "capset")


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl({option})")


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
