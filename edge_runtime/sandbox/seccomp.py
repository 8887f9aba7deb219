"""seccomp by libseccomp: which system calls a process may make, and with which arguments.

The library itself (cffi's ABI mode), as far as this project calls it: its Python bindings either need a compiler or
have had no release for years. Source: seccomp.h of libseccomp 2.5. What is allowed whatever its arguments are costs
next to nothing, because the kernel remembers that; a rule on arguments is looked up at each call.
"""

import errno
import os
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import cffi

LIBRARY: Final = "libseccomp.so.2"
_API: Final = 3
"""What `seccomp_api_get` says at least where the kernel can do all that is used here (Linux 4.14)."""

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
"""End the process with SIGSYS, whatever handlers it has."""


def fail(number: int) -> int:
    """The action that makes a system call fail with this errno."""
    return 0x00050000 | number


class Argument(NamedTuple):
    """A condition on an argument, counted from 0: it is `value`, in the bits of `mask` where there is one. There is no
    `not`: the filter sees 64 bits where the kernel often takes 32, so it could be fooled."""

    position: int
    value: int
    mask: int | None = None


class Rule(NamedTuple):
    """Rules of one system call: the first whose conditions all hold counts; one without any must be its only one."""

    name: str
    conditions: tuple[Argument, ...] = ()
    action: int = ALLOW


_ffi: Final[Any] = cffi.FFI()
_ffi.cdef("""
struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; };
void *seccomp_init(uint32_t);
int seccomp_attr_set(void *, int, uint32_t);
int seccomp_rule_add_array(void *, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int seccomp_syscall_resolve_name(const char *);
int seccomp_load(void *);
unsigned int seccomp_api_get(void);
""")
_EQ: Final = 4
_MASKED_EQ: Final = 7
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
    """Why there is no seccomp here; empty where there is."""
    if _library is None:
        return f"{LIBRARY} is missing (on Debian `sudo apt-get install -y libseccomp2`)"
    if _library.seccomp_api_get() < _API:
        return "the kernel has no seccomp filters, or forbids them here"
    return ""


class Filter:
    """Rules that are put together, and then hold for the process that loads them; made once, it may be loaded by each
    child of a fork."""

    def __init__(self, otherwise: int) -> None:
        """`otherwise` is the action for what no rule is about. System calls of other architectures end the process."""
        self._context = _library.seccomp_init(otherwise)
        _check(_library.seccomp_attr_set(self._context, _TSYNC, 1), "TSYNC")
        # A binary tree, in place of one comparison after the other.
        _check(_library.seccomp_attr_set(self._context, _OPTIMIZE, 2), "OPTIMIZE")

    def add(self, rules: Iterable[Rule]) -> None:
        """Errors: ValueError for a name that the library doesn't know, OSError."""
        for name, conditions, action in rules:
            number = _library.seccomp_syscall_resolve_name(name.encode())
            if number == _NO_SUCH_CALL:
                raise ValueError(f"libseccomp knows no system call {name}")
            given = _ffi.new("struct scmp_arg_cmp[]", len(conditions))
            for place, (position, value, mask) in zip(given, conditions, strict=True):
                place.arg = position
                place.op = _EQ if mask is None else _MASKED_EQ
                place.datum_a, place.datum_b = (value, 0) if mask is None else (mask, value)
            _check(_library.seccomp_rule_add_array(self._context, action, number, len(conditions), given), name)

    def load(self) -> None:
        """Hold this process, all its threads, to the rules, for ever. Error: OSError."""
        _check(_library.seccomp_load(self._context), "load")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = -result
        raise OSError(code, f"seccomp ({what}): {os.strerror(code)} {errno.errorcode.get(code, '')}")
