"""seccomp filters, built with libseccomp: which system calls a process may make, and with which arguments.

libseccomp is called through cffi's ABI mode (its declarations are in seccomp.h), because its Python bindings either
need a compiler or have had no release for years. A call that is allowed regardless of its arguments costs next to
nothing, because the kernel caches that answer; a rule on arguments is evaluated on each call.
"""

import errno
import os
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from edge_runtime.sandbox import seccomp_h

LIBRARY: Final = "libseccomp.so.2"
_API: Final = 3
"""The lowest answer of `seccomp_api_get` for a kernel that can do everything used here (Linux 4.14)."""

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
"""SECCOMP_RET_KILL_PROCESS: kill the process with SIGSYS, whatever signal handlers it has."""


def fail(number: int) -> int:
    """Return the action that makes a system call fail with the errno `number`."""
    return 0x00050000 | number


class Argument(NamedTuple):
    """A condition on the argument at `position` (from 0): it equals `value`, compared only in the bits of `mask` if one
    is given. There is no "not equal": the filter sees 64 bits where the kernel often uses 32, so such a condition could
    be fooled."""

    position: int
    value: int
    mask: int | None = None


class Rule(NamedTuple):
    """A rule for the system call `name`: if all conditions hold, `action` is taken. The first matching rule counts; a
    call that has a rule without conditions can have no other rule."""

    name: str
    conditions: tuple[Argument, ...] = ()
    action: int = ALLOW


_ffi: Final[Any] = seccomp_h.ffi
_EQ: Final = 4
_MASKED_EQ: Final = 7
_BAD_ARCHITECTURE: Final = 2
_TSYNC: Final = 4
_OPTIMIZE: Final = 8
_NO_SUCH_CALL: Final = -1


def _open() -> Any:
    try:
        return _ffi.dlopen(LIBRARY)
    except OSError:
        return None


_library: Final[Any] = _open()


def lacking() -> str:
    """Return why this machine has no seccomp; empty if it has."""
    if _library is None:
        return f"{LIBRARY} is missing (on Debian `sudo apt-get install -y libseccomp2`)"
    if _library.seccomp_api_get() < _API:
        return "the kernel has no seccomp filters, or forbids them here"
    return ""


class Filter:
    """A list of rules that applies to each process that loads it. A filter made before a fork can be loaded by each
    child."""

    def __init__(self, otherwise: int) -> None:
        """`otherwise` is the action for a call that no rule matches. A call with another architecture's numbers kills
        the process."""
        self._context = _library.seccomp_init(otherwise)
        # libseccomp's default action kills only the thread, and the others go on with its files and locks.
        _check(_library.seccomp_attr_set(self._context, _BAD_ARCHITECTURE, KILL), "ACT_BADARCH")
        _check(_library.seccomp_attr_set(self._context, _TSYNC, 1), "TSYNC")
        # The rules become a binary tree instead of a sequence of comparisons.
        _check(_library.seccomp_attr_set(self._context, _OPTIMIZE, 2), "OPTIMIZE")

    def add(self, rules: Iterable[Rule]) -> None:
        """Add rules.

        Raises: ValueError, when libseccomp doesn't know a system call's name; OSError, when it refuses a rule.
        """
        for name, conditions, action in rules:
            number = _library.seccomp_syscall_resolve_name(name.encode())
            if number == _NO_SUCH_CALL:
                raise ValueError(f"libseccomp knows no system call {name}")
            array = _ffi.new("struct scmp_arg_cmp[]", len(conditions))
            for entry, (position, value, mask) in zip(array, conditions, strict=True):
                entry.arg = position
                entry.op = _EQ if mask is None else _MASKED_EQ
                entry.datum_a, entry.datum_b = (value, 0) if mask is None else (mask, value)
            _check(_library.seccomp_rule_add_array(self._context, action, number, len(conditions), array), name)

    def load(self) -> None:
        """Apply the rules permanently to all threads of this process.

        Raises: OSError, when the kernel refuses.
        """
        _check(_library.seccomp_load(self._context), "load")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = -result
        raise OSError(code, f"seccomp ({what}): {os.strerror(code)} {errno.errorcode.get(code, '')}")
