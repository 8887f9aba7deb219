"""How often something may be tried at this replica, from an address and in all: for what anybody may ask.

Strangers have their tries in common, so that many addresses together guess no more than a few. Addresses from which
somebody has signed in have others in common: strangers can't use these up, and nobody who works here is kept out.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from control.problems import ProblemError

MOST_ADDRESSES = 5_000
"""Addresses whose tries are counted apart; with more, all are forgotten but the counts of all together."""
NETWORK = 64
"""Bits of an IPv6 address that name whose it is: within such a network, one machine has any number of addresses."""


@dataclass(slots=True)
class Left:
    """How many tries were left at a time."""

    most: int
    count: float
    at: float

    def more(self) -> None:
        """One try more: one that was counted was right."""
        self.count = min(self.count + 1, self.most)


class Guesses:
    """Lets `each` tries an address and `all` together through in `seconds`; a try that was right can be given back."""

    def __init__(
        self,
        what: str,
        each: int,
        all: int,
        seconds: float,
        passed: Callable[[], float],
        knows: Callable[[str], Awaitable[bool]],
    ) -> None:
        """`what` is tried, for the refusal; `passed` tells the time in seconds; `knows` tells whether somebody has
        signed in from a place."""
        self._what = what
        self._each = each
        self._seconds = seconds
        self._passed = passed
        self._knows = knows
        self._strangers, self._known = (Left(all, all, passed()) for _ in range(2))
        self._by_place: dict[str, Left] = {}

    async def take(self, address: str, *, known: bool = False) -> tuple[Left, ...]:
        """Count a try, before it is looked at, and return what it was counted in, for `give_back`.

        `known`: whoever tries is signed in. Raises: ProblemError too_many_tries, when there were too many.
        """
        at = place(address)
        self._refuse_spent(self._own(at))
        common = self._strangers
        if known or (self._refilled(common) < 1 and await self._knows(at)):
            common = self._known
        counted = self._own(at), common
        for left in counted:
            self._refuse_spent(left)
        for left in counted:
            left.count -= 1
        return counted

    def give_back(self, counted: tuple[Left, ...]) -> None:
        """The try was right: it doesn't count."""
        for left in counted:
            left.more()

    def _own(self, at: str) -> Left:
        if at not in self._by_place and len(self._by_place) >= MOST_ADDRESSES:
            self._by_place.clear()
        return self._by_place.setdefault(at, Left(self._each, self._each, self._passed()))

    def _refuse_spent(self, left: Left) -> None:
        if self._refilled(left) < 1:
            wait = int((1 - left.count) * self._seconds / left.most) + 1
            raise ProblemError(
                "too_many_tries", f"{self._what}: too many tries; wait {wait} s, then try again", retry_after=wait
            )

    def _refilled(self, left: Left) -> float:
        now = self._passed()
        left.count = min(left.most, left.count + (now - left.at) * left.most / self._seconds)
        left.at = now
        return left.count


def place(address: str) -> str:
    """Where tries from an address are counted: IPv4 by the address, IPv6 by its network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, NETWORK), strict=False))
