"""Landlock: a list, kept by the kernel, of what a process may do with which folders. The process can later narrow the
list, but never widen it.

glibc has no functions for Landlock, so its three system calls are made by number, which is the same on every
architecture. Source: linux/landlock.h and Documentation/userspace-api/landlock.rst.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_NET: Final = 0b11
"""LANDLOCK_ACCESS_NET_BIND_TCP and …_CONNECT_TCP are restricted, and no rule ever allows a port."""
_SCOPES: Final = 0b11
"""LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and LANDLOCK_SCOPE_SIGNAL: neither leaves the process's own Landlock domain."""
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

NEEDED: Final = 3
"""The lowest Landlock version that the fence counts as whole: from version 3 (Linux 6.2) on, a file that is open only
for reading can't be truncated either."""


class Access(IntFlag):
    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    """Move a file to another folder."""
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_OF_FILES: Final = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


def version() -> int:
    """Return the version of the kernel's Landlock; 0 if the kernel has none or was started without it."""
    try:
        return _call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


class Ruleset:
    """What a process may do with files once it has entered this ruleset; everything else is refused. One ruleset can be
    entered by any number of forked children. A rule covers what lies below its path when the ruleset is made."""

    def __init__(self, rules: Iterable[tuple[Path, Access]]) -> None:
        """Make the ruleset in the kernel; `rules` are paths, each with what is allowed below it.

        Raises: OSError, when a path can't be opened or the kernel refuses.
        """
        supported = version()
        handled = Access(0xFFFF)
        if supported < 5:
            handled &= ~Access.IOCTL_DEV
        if supported < 3:
            handled &= ~Access.TRUNCATE
        if supported < 2:
            handled &= ~Access.REFER
        attributes = struct.pack("=QQQ", handled, _NET, _SCOPES)[
            : 24 if supported >= 6 else 16 if supported >= 4 else 8
        ]
        self._descriptor = _call(_CREATE_RULESET, attributes, len(attributes), 0)
        for path, access in rules:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                allowed = access if path.is_dir() else access & _OF_FILES
                rule = struct.pack("=Qi", allowed & handled, descriptor)
                _call(_ADD_RULE, self._descriptor, _RULE_PATH_BENEATH, rule, 0)
            finally:
                os.close(descriptor)

    def enter(self) -> None:
        """Limit this thread, and all threads that it starts, to what the rules allow for files, and to no TCP. From
        Linux 6.12 on they can also send signals and connect to abstract Unix sockets only within their own Landlock
        domain.

        The process must have set no_new_privs. Files that are open stay open.

        Raises: OSError, when the kernel refuses.
        """
        _call(_RESTRICT_SELF, self._descriptor, 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _call(number: int, *arguments: int | bytes | None) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock (system call {number}): {os.strerror(code)}")
    return result
