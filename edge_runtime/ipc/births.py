"""The messages between the front and the zygote, in JSON: orders to fork a child, births and deaths (also described in
words)."""

import os
import signal
from typing import Final, Literal

import msgspec
from msgspec import Struct

from edge_runtime.ipc import frames

MESSAGE_BYTES: Final = 65_536
"""Bytes of the longest message."""

ChildKind = Literal["worker", "applier", "compiler", "checkpointer", "repeater"]
_EXITING: Final = 4
"""PF_EXITING."""
_KILLED: Final = 1 << signal.SIGKILL - 1
"""SIGKILL, in a set of signals."""


class Arguments(Struct, frozen=True):
    """The zygote's arguments."""

    control: int
    """Descriptor of the socket to the front."""
    page: int
    """Descriptor of the memory that the front shares with its workers."""
    parent: int
    """Process id of the front."""
    settings: frames.ChildSettings


class Birth(Struct, frozen=True):
    """Fork a child. Its end of a socketpair comes along."""

    id: int
    kind: ChildKind
    slot: int = 0
    background: bool = False


class ZygoteUp(Struct, frozen=True, tag="up"):
    lacking: tuple[str, ...] = ()
    """Missing parts of this machine's fence, in words."""
    uncompiled: str = ""
    """Why workers run plain calls in Python; empty if they run them in C."""


class Starting(Struct, frozen=True, tag="starting"):
    """The zygote's start has progressed by a step."""


class Recovering(Struct, frozen=True, tag="recovering"):
    """The database's log is being read, which takes as long as the disk needs."""


class ZygoteUnfit(Struct, frozen=True, tag="unfit"):
    """No guest can run on this machine as it is."""

    message: str


class Born(Struct, frozen=True, tag="born"):
    """The child has been forked. Its pidfd comes along."""

    id: int
    pid: int


class BirthFailed(Struct, frozen=True, tag="not_born"):
    """The child can't be forked now: the system lacks a process, descriptor or memory. The request may be repeated."""

    id: int
    message: str


class Died(Struct, frozen=True, tag="died"):
    """A child has exited."""

    id: int
    status: int
    """The exit status as from waitpid."""


News = ZygoteUp | Starting | Recovering | ZygoteUnfit | Born | BirthFailed | Died
decode_news: Final = msgspec.json.Decoder(News).decode


def how(status: int | None) -> str:
    """Describe a child's exit in words, given its exit status as from waitpid."""
    if status is None:
        return "ended with the zygote"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # Some signals have no name.
        name = next((known.name for known in signal.Signals if known == number), "")
        return f"was ended by signal {number}{f' ({name})' if name else ''}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"


def ending(stat: bytes) -> bool:
    """Return whether a thread is exiting, or will when it next runs, according to its `stat` in /proc
    (proc_pid_stat(5)).

    In a process that was killed, or that its main thread is exiting, SIGKILL is pending for each other thread.
    """
    fields = stat.rpartition(b")")[2].split()
    return bool(int(fields[6]) & _EXITING or int(fields[28]) & _KILLED)
