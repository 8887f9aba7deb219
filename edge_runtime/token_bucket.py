"""A limit on how much somebody may use: a bucket that fills at a steady rate, and from which each use takes. Pure."""


class TokenBucket:
    """A bucket that holds at most `burst`, is full at first, and fills by `rate` per second.

    The caller decides what is counted: bytes of a log, calls. Times are seconds of any clock that doesn't go back.
    """

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, burst: float, rate: float) -> None:
        """Make a full bucket; `burst` and `rate` are above 0."""
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._at = float("-inf")

    def take(self, count: float, now: float) -> bool:
        """Take `count` at the time `now`, and return whether enough was left; otherwise take nothing."""
        self._fill(now)
        if self._left < count:
            return False
        self._left -= count
        return True

    def wait(self, count: float, now: float) -> float:
        """Return for how many seconds from `now` on `take` would refuse `count`, which is at most `burst`."""
        self._fill(now)
        return max(0.0, (count - self._left) / self._rate)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
