"""Times in which this process didn't run: stopped by a signal, with the whole machine, or without a processor.

Nobody else may have run then either, so limits don't count them. They are noticed by timers that ring too late. Pure.
"""

from collections import deque
from typing import Final

LATE: Final = 0.5
"""Seconds by which a timer must ring too late: less is a busy machine."""
_MOST: Final = 64
"""Pauses that are remembered. No limit is so long that older ones could matter."""


class Pauses:
    """All times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._known: deque[tuple[float, float]] = deque(maxlen=_MOST)
        """When each began and ended, in their order."""

    def notice(self, due: float, now: float) -> float:
        """A timer that was due rings now. How long the pause was; 0 where it is in time."""
        late = now - due
        if late < LATE:
            return 0.0
        self._known.append((due, now))
        return late

    def passed(self, since: float, now: float) -> float:
        """Seconds between two times, without the pauses."""
        gone = now - since
        for began, ended in reversed(self._known):
            if ended <= since:
                break
            gone -= ended - max(began, since)
        return gone
