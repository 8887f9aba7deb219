"""How often something may be tried: by an address, by all strangers together, and by those who are known."""

import contextlib

import pytest

from control.access import rate_limits
from control.access.rate_limits import Guesses
from control.problems import ProblemError


class Tries:
    """`Guesses` on a clock of the test's: 3 tries of an address and 5 in all, in 30 seconds."""

    def __init__(self, *known: str) -> None:
        self.time = 100.0
        self.asked: list[str] = []

        async def knows(place: str) -> bool:
            self.asked.append(place)
            return place in known

        self.guesses = Guesses("codes", 3, 5, 30.0, lambda: self.time, knows)

    async def let_through(self, *addresses: str, known: bool = False) -> int:
        """How many of a try of each of these were let through."""
        done = 0
        for address in addresses:
            with contextlib.suppress(ProblemError):
                await self.guesses.take(address, known=known)
                done += 1
        return done


async def test_who_tried_too_often_is_told_when_to_try_again() -> None:
    tries = Tries()
    await tries.let_through(*["192.0.2.1"] * 3)
    with pytest.raises(ProblemError) as refused:
        await tries.guesses.take("192.0.2.1")
    assert (refused.value.code, refused.value.status, refused.value.retry_after) == ("too_many_tries", 429, 11)
    tries.time += 11
    assert await tries.let_through("192.0.2.1") == 1


@pytest.mark.parametrize(
    "addresses",
    [
        ["192.0.2.1"],
        ["192.0.2.1", "::ffff:192.0.2.1"],
        ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::1%eth0"],
        ["unknown"],
    ],
)
async def test_an_address_has_its_tries_and_gets_them_back_with_time(addresses: list[str]) -> None:
    """All of a network of IPv6 are one."""
    tries = Tries()
    assert await tries.let_through(*addresses * 10) == 3
    tries.time += 10.1
    assert await tries.let_through(*addresses * 10) == 1
    tries.time += 1000
    assert await tries.let_through(*addresses * 10) == 3


async def test_all_together_have_theirs() -> None:
    tries = Tries()
    assert await tries.let_through(*(f"192.0.2.{n}" for n in range(20))) == 5
    assert await tries.let_through(*(f"2001:db8:0:{n}::1" for n in range(20))) == 0


async def test_strangers_use_up_nothing_of_those_who_are_known() -> None:
    tries = Tries("198.51.100.1", "2001:db8::/64", *(f"203.0.113.{n}" for n in range(9)))
    strangers = [f"192.0.2.{n}" for n in range(20)]
    assert await tries.let_through(*strangers[:4]) == 4
    assert tries.asked == [], "nobody is looked for while there are tries for all"
    assert await tries.let_through(*strangers) == 1
    assert await tries.let_through(*["198.51.100.1"] * 9) == 3
    assert await tries.let_through("2001:db8::77", "2001:db8:0:1::77", "192.0.2.99") == 1
    assert await tries.let_through(*(f"203.0.113.{n}" for n in range(9))) == 1, "they have as many in common"
    # Who is signed in is one of them, from wherever.
    tries = Tries()
    assert await tries.let_through(*strangers) == 5
    assert await tries.let_through(*strangers, known=True) == 5


async def test_what_was_right_does_not_count() -> None:
    tries = Tries("192.0.2.1")
    for _ in range(2):
        for _ in range(20):
            tries.guesses.give_back(await tries.guesses.take("192.0.2.1"))
        # The second time of those that are known.
        await tries.let_through(*(f"198.51.100.{n}" for n in range(20)))
    assert await tries.let_through(*["192.0.2.1"] * 10) == 3


async def test_many_addresses_take_no_memory_and_get_no_more_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MOST_ADDRESSES", 10)
    tries = Tries()
    assert await tries.let_through(*(f"192.0.2.{n % 100}" for n in range(1000))) == 5
    assert len(tries.guesses._by_place) <= 10
