"""Landlock: the kernel's own list of what a process may do with which folders, which it can never widen again.

glibc has no functions for it, so the three system calls are made by number, the same on every architecture. Source:
linux/landlock.h and Documentation/userspace-api/landlock.rst.
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
"""Bind and connect TCP; no rule ever allows a port."""
_SCOPES: Final = 0b11
"""Abstract Unix sockets and signals: none of them leaves the process's own domain."""
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

NEEDED: Final = 3
"""The first version under which a file that may only be read can't be truncated either (Linux 6.2)."""


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
    """Move to another folder."""
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_OF_FILES: Final = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


def version() -> int:
    """Of the kernel's Landlock; 0 where it has none, or has been started without it."""
    try:
        return _call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


class Ruleset:
    """What a process will be able to do with files, and nothing besides; made once, it holds for each child of a fork
    that enters it. It is about what lies below each path, as the path is now."""

    def __init__(self, rules: Iterable[tuple[Path, Access]]) -> None:
        """Error: OSError."""
        found = version()
        handled = Access(0xFFFF)
        if found < 5:
            handled &= ~Access.IOCTL_DEV
        if found < 3:
            handled &= ~Access.TRUNCATE
        if found < 2:
            handled &= ~Access.REFER
        attributes = struct.pack("=QQQ", handled, _NET, _SCOPES)[: 24 if found >= 6 else 16 if found >= 4 else 8]
        self._descriptor = _call(_CREATE_RULESET, attributes, len(attributes), 0)
        for path, access in rules:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                allowed = access if path.is_dir() else access & _OF_FILES
                rule = struct.pack("=Qi", allowed & handled, opened)
                _call(_ADD_RULE, self._descriptor, _RULE_PATH_BENEATH, rule, 0)
            finally:
                os.close(opened)

    def enter(self) -> None:
        """From here on this thread, and those that it starts, can do with files what the rules say, and no TCP. It can
        send signals and connect to abstract Unix sockets within its own domain alone (Linux 6.12).

        no_new_privs must be set. What is open stays open. Error: OSError.
        """
        _call(_RESTRICT_SELF, self._descriptor, 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _call(number: int, *arguments: int | bytes | None) -> int:
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *given))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock (system call {number}): {os.strerror(code)}")
    return result
