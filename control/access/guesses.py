"""How often something may be tried at this replica, from an address and in all: for what anybody may ask."""

from collections.abc import Callable
from dataclasses import dataclass

from control.problems import ProblemError

MOST_ADDRESSES = 5_000
"""Addresses whose tries are counted apart; with more, all are forgotten but the count of all together."""


@dataclass(slots=True)
class _Left:
    """How many tries were left at a time."""

    count: float
    at: float


class Guesses:
    """Lets `each` tries an address and `all` together through in `seconds`; a try that was right can be given back."""

    def __init__(self, what: str, each: int, all: int, seconds: float, passed: Callable[[], float]) -> None:
        """`what` is tried, for the refusal; `passed` tells the time in seconds."""
        self._what = what
        self._each = each
        self._all = all
        self._seconds = seconds
        self._passed = passed
        self._together = _Left(all, passed())
        self._by_address: dict[str, _Left] = {}

    def take(self, address: str) -> None:
        """Count a try, before it is looked at. Raises: ProblemError too_many_tries, when there were too many."""
        if len(self._by_address) >= MOST_ADDRESSES:
            self._by_address.clear()
        own = self._by_address.setdefault(address, _Left(self._each, self._passed()))
        for left, most in ((own, self._each), (self._together, self._all)):
            self._refill(left, most)
            if left.count < 1:
                wait = int((1 - left.count) * self._seconds / most) + 1
                raise ProblemError(
                    "too_many_tries", f"{self._what}: too many tries; wait {wait} s, then try again", retry_after=wait
                )
        own.count -= 1
        self._together.count -= 1

    def give_back(self, address: str) -> None:
        """The last try was right: it doesn't count."""
        own = self._by_address.get(address)
        if own is not None:
            own.count = min(own.count + 1, self._each)
        self._together.count = min(self._together.count + 1, self._all)

    def _refill(self, left: _Left, most: int) -> None:
        now = self._passed()
        left.count = min(most, left.count + (now - left.at) * most / self._seconds)
        left.at = now
