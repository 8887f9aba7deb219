"""Has system calls of the processes that a test starts fail, or take longer, on chosen files (`failing_calls.c`).

Programs started with `FailingCalls.environment`, and all that they fork, follow its rules from the moment that a rule
is made; a fence doesn't keep them from it. The test's own process is never concerned.
"""

import mmap
import struct
from pathlib import Path
from typing import Final

from tests.guests.build import native
from tests.support import forked_programs

SOURCE: Final = Path(__file__).with_name("failing_calls.c")
_RULE: Final = struct.Struct("=16s64siIQQQQ")
_RULES: Final = 63
_FIRST: Final = 128
_SEEN: Final = _RULE.size - 16
"""Bytes from a rule's start to its two counts."""
ALWAYS: Final = 2**62
SHORT: Final = -1
"""In the place of an errno: a read or a write of half of the bytes."""


def library() -> Path:
    """The shared library to be preloaded, built once for its source."""
    made = native(SOURCE, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
    forked_programs.may_be_preloaded(made)
    return made


class Rule:
    """One rule of the table, and what came of it."""

    def __init__(self, table: mmap.mmap, at: int) -> None:
        self._table = table
        self._at = at

    @property
    def seen(self) -> int:
        """Calls that it matched so far, whether they were concerned or not."""
        return self._counts()[0]

    @property
    def concerned(self) -> int:
        """Calls that failed, or were late, by it."""
        return self._counts()[1]

    def end(self) -> None:
        """From here on it concerns no call."""
        self._table[self._at + 96 : self._at + 104] = struct.pack("=Q", 0)

    def _counts(self) -> tuple[int, int]:
        seen, concerned = struct.unpack_from("=QQ", self._table, self._at + _SEEN)
        return seen, concerned


class FailingCalls:
    """A table of rules in a file; at first it has none."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_FIRST + _RULES * _RULE.size))
        with path.open("r+b") as opened:
            self._table = mmap.mmap(opened.fileno(), 0)
        self._made: list[Rule] = []
        self.environment: dict[str, str] = {"LD_PRELOAD": str(library()), "SKERRY_FAILING_CALLS": str(path)}
        """Variables for the processes that follow the table."""

    def fail(self, call: str, path: str, error: int, *, first: int = 0, times: int = 1) -> Rule:
        """Have a system call fail on files whose path ends with `path`, with errno `error` and without being made.

        A `path` that ends with a slash stands for files whose path has it anywhere. `fork`, `socket` and `accept`
        concern no file: their `path` is empty.
        Counted from 0 and from now on, the `first` of the matching calls is the first that fails, and so many `times`
        one after the other do.
        """
        return self._rule(call, path, error, 0.0, first, times)

    def delay(self, call: str, path: str, seconds: float, *, first: int = 0, times: int = ALWAYS) -> Rule:
        """Have a system call take so many `seconds` longer; the rest as in `fail`."""
        return self._rule(call, path, 0, seconds, first, times)

    @property
    def concerned(self) -> bool:
        """Whether a call failed, or was late, by a rule that is there now."""
        return any(rule.concerned for rule in self._made)

    def clear(self) -> None:
        """Take all rules away."""
        struct.pack_into("=Q", self._table, 0, 0)
        self._made = []

    def _rule(self, call: str, path: str, error: int, seconds: float, first: int, times: int) -> Rule:
        assert len(self._made) < _RULES, "the table is full"
        at = _FIRST + len(self._made) * _RULE.size
        assert len(path) < 64, f"only the end of a path fits: {path}"
        _RULE.pack_into(self._table, at, call.encode(), path.encode(), error, round(seconds * 1e6), first, times, 0, 0)
        self._made.append(Rule(self._table, at))
        struct.pack_into("=Q", self._table, 0, len(self._made))
        return self._made[-1]
