"""What a child does to itself before it runs anything of others: limits, no capabilities, Landlock, seccomp.

`prepare` is done by its parent, once for all. `enter` comes before the libsql file is opened (libsql starts a thread,
which must be behind Landlock too), `seal` after it (opening takes what a fenced process has no use for). Nothing of it
can be undone. What each kind may then still do is in `allowed`. RLIMIT_AS is never among the limits: where an address
space is limited, WasmEdge can't keep a guest in its sandbox.
"""

import contextlib
import ctypes
import functools
import os
import resource
import signal
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from control import faults
from edge_runtime.sandbox import landlock, profiles, seccomp
from edge_runtime.sandbox.landlock import Access
from edge_runtime.sandbox.profiles import CHILD_KINDS, ChildKind

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_OF_FILES: Final = 1 << 0 | 1 << 1 | 1 << 3
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER: a root that runs a node on another user's files keeps its way with files,
as far as Landlock lets it."""
_libc: Final = ctypes.CDLL(None, use_errno=True)

OPEN_FILES: Final = 256
FILE_BYTES: Final = 64 * 1024**3
"""The largest file that a child may write: the libsql file, or an AOT file."""
DATA_BYTES: Final = 8 * 1024**3
"""Private memory that a child may have mapped for writing; what WasmEdge only reserves doesn't count. Far above what
two memories of 1 GiB take: a guest whose first page were refused would run without a memory of its own."""
OOM_SCORE: Final = b"500"

_rulesets: Final[dict[ChildKind, landlock.Ruleset]] = {}
"""Made by `prepare`; empty where there is no Landlock."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; `parent` is the pid that it had when it was made."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the line above.
        os._exit(1)


@functools.cache
def lacking() -> tuple[str, ...]:
    """The pieces of the fence that this machine doesn't have, in words for a person."""
    found = []
    version = landlock.version()
    if version < landlock.NEEDED:
        has = f"version {version}" if version else "none"
        found.append(
            f"Landlock: the kernel has {has}, version {landlock.NEEDED} (Linux 6.2) is needed; where it is newer, is "
            "`landlock` missing in the kernel's `lsm=`, or forbidden by a container?"
        )
    if why := seccomp.lacking():
        found.append(f"seccomp: {why}")
    return tuple(found)


def prepare(state: Path) -> None:
    """What children inherit, or can be made once for all of them: in their parent, before the forks. The parent has
    the limits, no new privileges and no capabilities itself from here on. Error: OSError."""
    _set_limits()
    for kind in CHILD_KINDS:
        _filter(kind)
        if landlock.version():
            _rulesets[kind] = landlock.Ruleset(profiles.files(kind, state) + _fault_points())


def enclose(files: Iterable[tuple[Path, Access]] = ()) -> None:
    """`prepare` and `enter` in one, for a process of its own that runs or reads others' bytes: these files are what it
    can open from here on. `seal` comes after it, too. Error: OSError."""
    _set_limits()
    _prefer_for_oom_kill()
    narrow(files)


def narrow(files: Iterable[tuple[Path, Access]]) -> None:
    """Of the files that this process can open, these are what it can open from here on. Error: OSError."""
    if landlock.version():
        ruleset = landlock.Ruleset([*files, *_fault_points()])
        ruleset.enter()
        ruleset.close()


def _fault_points() -> list[tuple[Path, Access]]:
    """A test's fault points."""
    points = faults.folder()
    return [] if points is None or not points.exists() else [(points, profiles.WRITE)]


def _set_limits() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_DATA, DATA_BYTES),
    ):
        lower(limit, value)
    _drop_capabilities()


def enter(kind: ChildKind) -> None:
    """The first part of a child's own: files. Error: OSError."""
    _prefer_for_oom_kill()
    if kind in _rulesets:
        _rulesets[kind].enter()
    for ruleset in _rulesets.values():
        ruleset.close()


def _prefer_for_oom_kill() -> None:
    """The first to go where memory runs out; not so its parent, whose end would be the end of all of them."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, OOM_SCORE)
        os.close(descriptor)


def seal(kind: ChildKind, writer_lock: int | None = None) -> None:
    """The second part: no more processes, and only the system calls of its kind; `writer_lock` is the descriptor of
    the only file that it may lock by flock. Error: OSError."""
    if kind != "compiler":
        lower(resource.RLIMIT_NPROC, 0)
    filtering = _filter(kind)
    if filtering is not None:
        filtering.add(profiles.own_rules(os.getpid(), writer_lock))
        filtering.load()


_limited: Final[list[int]] = []
"""Signals of a file's limit that came and weren't asked for yet."""


def limit_files(limit: int) -> None:
    """Bound each file that this process writes, in bytes. What is above it fails with EFBIG."""
    signal.signal(signal.SIGXFSZ, lambda number, _: _limited.append(number))
    lower(resource.RLIMIT_FSIZE, limit)


def came_to_limit() -> bool:
    """Whether a write has failed for `limit_files` since this was last asked."""
    found = bool(_limited)
    _limited.clear()
    return found


def without_haste() -> None:
    """Don't take the processor from who has it as soon as there is something to do: the front would be stopped at
    each call that it hands over, where it can hand over several."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def behind_calls() -> None:
    """Leave most of the processor to functions' calls, where they want it: only a release waits for this."""
    with contextlib.suppress(OSError):
        os.nice(10)


def in_background() -> None:
    """Work only where the processor has nothing else to do."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.nice(19)


@functools.cache
def _filter(kind: ChildKind) -> seccomp.Filter | None:
    """All rules but those of one process; None where there is no seccomp."""
    if seccomp.lacking():
        return None
    made = seccomp.Filter(otherwise=seccomp.fail(1))
    made.add(profiles.rules(kind))
    return made


def lower(limit: int, value: int) -> None:
    """Bound what this process may have, unless it is bound lower."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _drop_capabilities() -> None:
    """Keep none but those about files; an ordinary user has none anyway."""
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
