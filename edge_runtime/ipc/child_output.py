"""Puts the output of the zygote and its children into the front's log, line by line.

They get a pipe instead of the front's own stderr, which may be a terminal, or a file that a child that was taken over
could empty.
"""

import asyncio
import contextlib
import logging
import os
from typing import Final

from control.protocol.counts import counted
from edge_runtime import clock
from edge_runtime.token_bucket import TokenBucket

log = logging.getLogger("skerry.child")

BURST: Final = 1 << 20
RATE: Final = 64 * 1024
"""Bytes that are logged at once, and then per second: a child that was taken over may print without end."""
_LINE: Final = 100
"""Bytes that a line counts for in addition to its text."""
_PIECE: Final = 65_536
"""Bytes that are read at once, and that a line may have."""


class ChildOutput:
    """One pipe. `write` is the descriptor that the zygote inherits; `started` closes it on this side."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)
        self._rest = b""
        self._budget = TokenBucket(BURST, RATE)
        self._left_out = 0
        """Lines left out since the log last reported them."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read, self._readable)

    def started(self) -> None:
        """Close the writing end, which the zygote has by now."""
        os.close(self.write)

    def close(self) -> None:
        """Log the rest; every process that could print has exited."""
        self._readable()
        if self._rest:
            self._say(self._rest)
        self._loop.remove_reader(self._read)
        os.close(self._read)

    def _readable(self) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._read, _PIECE)
            if not data:
                self._loop.remove_reader(self._read)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _PIECE:
            lines, self._rest = [*lines, self._rest], b""
        for number, line in enumerate(lines):
            if not self._say(line):
                # Not one by one: a child that was taken over may print nothing but line breaks.
                self._left_out += len(lines) - number - 1
                break

    def _say(self, line: bytes) -> bool:
        """Log a line; return whether it was logged rather than left out."""
        if not self._budget.take(len(line) + _LINE, clock.monotonic()):
            self._left_out += 1
            return False
        if self._left_out:
            left_out = counted(self._left_out, "line")
            log.error("left out of what the zygote and its children printed, too much: %s", left_out)
            self._left_out = 0
        text = line.decode(errors="backslashreplace")
        log.error("%s", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))
        return True
