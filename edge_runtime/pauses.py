"""Detect when this process didn't run: a signal stopped it, the machine was suspended, or it got no processor. Pure.

A timer that fires much too late shows such a pause, unless the process was busy itself. Other processes may not have
run either, so time limits don't count pauses.
"""

from collections import deque
from typing import Final

LATE: Final = 0.5
"""Seconds by which a timer must fire too late to show a pause; a busy machine delays timers by less."""
_MOST: Final = 64
"""How many pauses are remembered; no time limit is so long that older ones matter."""


class Pauses:
    """The pauses of this process. All times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._known: deque[tuple[float, float]] = deque(maxlen=_MOST)
        """Start and end of each pause, in order."""

    def notice(self, due: float, now: float, busy: float = 0.0) -> float:
        """Note that a timer due at `due` fires at `now`; return the seconds of the pause that this shows, 0 for none.

        `busy` is the processor time in seconds that this process used meanwhile.
        """
        late = now - due - busy
        if late < LATE:
            return 0.0
        self._known.append((now - late, now))
        return late

    def passed(self, since: float, now: float) -> float:
        """Return the seconds from `since` to `now`, without pauses."""
        gone = now - since
        for began, ended in reversed(self._known):
            if ended <= since:
                break
            gone -= ended - max(began, since)
        return gone
