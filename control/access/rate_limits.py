"""How often something may be done on this replica: tries of strangers, and nodes' acts that fill the audit log."""

import asyncio
import ipaddress
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from control.clock import Clock
from control.problems import ProblemError
from control.storage import queries
from control.storage.database import Database

MOST_ADDRESSES = 5_000
"""Addresses whose tries are counted separately; with more, all but the total counts are forgotten."""
NETWORK = 64
"""Bits of an IPv6 address that identify its owner: one machine can have any number of addresses in such a network."""
LOOKED_BACK = timedelta(days=90)
"""How long ago the last sign-in from a known place may be; the audit log may be kept for less."""
MOST_READ = 10_000
"""How many of the newest sign-ins are examined."""
AGAIN = 5.0
"""The fewest seconds between two reads of the places. They are read only while strangers have used up their tries."""
HOUR = 3600.0
Act = Literal["SQL that was run", "credentials"]
MOST: dict[Act, int] = {"SQL that was run": 120, "credentials": 20}
"""Rows of a node per hour; as many at once after an hour without any."""
MOST_NODES = 20_000
"""Nodes and join tokens that are counted; with more, all counts start over."""

SIGNED_IN_FROM = queries.load("sign_ins").value("signed_in_from", str)

log = logging.getLogger("skerry.control")
sessions_log = logging.getLogger("skerry.sessions")


@dataclass(slots=True)
class Allowance:
    """Allows `most` acts at once, which are regained evenly within `seconds`."""

    most: int
    seconds: float
    count: float
    """How many acts were left at the time `at`, in seconds."""
    at: float

    def refill(self, now: float) -> float:
        """Add the acts regained by now; return how many are left."""
        self.count = min(self.most, self.count + (now - self.at) * self.most / self.seconds)
        self.at = now
        return self.count

    def wait(self) -> int:
        """Return the whole seconds from the last `refill` until one act is left."""
        return int((1 - self.count) * self.seconds / self.most) + 1

    def give_back(self) -> None:
        """Undo the counting of one act."""
        self.count = min(self.count + 1, self.most)


class Guesses:
    """Limits what anybody may try: `each` tries per address and `all` together in `seconds`.

    Strangers share their tries, so that many addresses together guess no more than a few. Addresses from which somebody
    has signed in share others: strangers can't use these up, so they can't lock out people who work here.
    """

    def __init__(
        self,
        what: str,
        each: int,
        all: int,
        seconds: float,
        passed: Callable[[], float],
        knows: Callable[[str], Awaitable[bool]],
    ) -> None:
        """Limit tries of `what`, which refusals name.

        `passed` returns the time in seconds; `knows` returns whether somebody has signed in from a place.
        """
        self._what = what
        self._each = each
        self._seconds = seconds
        self._passed = passed
        self._knows = knows
        self._strangers, self._known = (Allowance(all, seconds, all, passed()) for _ in range(2))
        self._by_place: dict[str, Allowance] = {}

    async def take(self, address: str, *, known: bool = False) -> tuple[Allowance, ...]:
        """Count a try before it is checked, and return where it was counted, for `give_back`.

        `known`: the client is signed in. Raises: ProblemError too_many_tries, when there were too many.
        """
        at = place(address)
        self._refuse_spent(self._own(at))
        common = self._strangers
        if known or (common.refill(self._passed()) < 1 and await self._knows(at)):
            common = self._known
        counted = self._own(at), common
        for left in counted:
            self._refuse_spent(left)
        for left in counted:
            left.count -= 1
        return counted

    def give_back(self, counted: tuple[Allowance, ...]) -> None:
        """Undo the counting of a successful try."""
        for left in counted:
            left.give_back()

    def _own(self, at: str) -> Allowance:
        if at not in self._by_place and len(self._by_place) >= MOST_ADDRESSES:
            self._by_place.clear()
        return self._by_place.setdefault(at, Allowance(self._each, self._seconds, self._each, self._passed()))

    def _refuse_spent(self, left: Allowance) -> None:
        if left.refill(self._passed()) < 1:
            wait = left.wait()
            raise ProblemError(
                "too_many_tries", f"{self._what}: too many tries; wait {wait} s, then try again", retry_after=wait
            )


def place(address: str) -> str:
    """Return under which key tries from an address are counted: the IPv4 address, or the IPv6 network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, NETWORK), strict=False))


class SignedInPlaces:
    """The places from which people have signed in, according to the audit log."""

    def __init__(self, lookups: Database, clock: Clock) -> None:
        self._db = lookups
        self._clock = clock
        self._places: frozenset[str] = frozenset()
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def has(self, place: str) -> bool:
        """Return whether somebody has signed in from a place; while the database is unavailable, as last known."""
        async with self._reading:
            if self._clock.monotonic() - self._read_at >= AGAIN:
                await self._read()
        return place in self._places

    async def _read(self) -> None:
        since = self._clock.now() - LOOKED_BACK
        try:
            found = await self._db.read(lambda conn: conn.column(SIGNED_IN_FROM, since, MOST_READ))
            self._places = frozenset(map(place, found))
        except ProblemError as error:
            sessions_log.warning("from where people have signed in can't be read: %s", error.detail)
        # Not every waiting request asks a database that is unavailable.
        self._read_at = self._clock.monotonic()


class NodeLimits:
    """Limits a node's acts that add a row to the audit log: whoever has a credential could fill it.

    A refused node tries again later: it keeps its reports until control accepts them.
    """

    def __init__(self, passed: Callable[[], float]) -> None:
        """Limit by the time in seconds that `passed` returns."""
        self._passed = passed
        self._left: dict[tuple[Act, str], Allowance] = {}
        self._told: set[tuple[Act, str]] = set()
        """Those whose excess was already logged."""

    def take(self, act: Act, id: str, who: str) -> None:
        """Count an act of the node or join token with this id; `who` names it.

        Raises: ProblemError too_many_acts, when there were too many.
        """
        now, most = self._passed(), MOST[act]
        if len(self._left) >= MOST_NODES:
            self._left.clear()
            self._told.clear()
        left = self._left.setdefault((act, id), Allowance(most, HOUR, most, now))
        if left.refill(now) < 1:
            if (act, id) not in self._told:
                log.warning("%s has left as many rows about %s in the audit log as it may, %d an hour", who, act, most)
            self._told.add((act, id))
            wait = left.wait()
            raise ProblemError(
                "too_many_acts",
                f"{who}: control takes {most} rows about {act} an hour; ask again in {wait} s",
                retry_after=wait,
            )
        if left.count > most / 2:
            self._told.discard((act, id))
        left.count -= 1
