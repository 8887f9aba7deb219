"""How often something may be tried: by an address, and by all together."""

import contextlib

import pytest

from control.access import guesses
from control.access.guesses import Guesses
from control.problems import ProblemError


class Tries:
    """`Guesses` on a clock of the test's: 3 tries of an address and 5 in all, in 30 seconds."""

    def __init__(self) -> None:
        self.time = 100.0
        self.guesses = Guesses("codes", 3, 5, 30.0, lambda: self.time)

    def let_through(self, address: str, times: int = 1) -> int:
        """How many of so many tries were let through."""
        done = 0
        for _ in range(times):
            with contextlib.suppress(ProblemError):
                self.guesses.take(address)
                done += 1
        return done


def test_who_tried_too_often_is_told_when_to_try_again() -> None:
    tries = Tries()
    tries.let_through("192.0.2.1", 3)
    with pytest.raises(ProblemError) as refused:
        tries.guesses.take("192.0.2.1")
    assert (refused.value.code, refused.value.status, refused.value.retry_after) == ("too_many_tries", 429, 11)
    tries.time += 11
    assert tries.let_through("192.0.2.1") == 1


def test_an_address_has_its_tries_and_gets_them_back_with_time() -> None:
    tries = Tries()
    assert tries.let_through("192.0.2.1", 10) == 3
    tries.time += 10.1
    assert tries.let_through("192.0.2.1", 10) == 1
    tries.time += 1000
    assert tries.let_through("192.0.2.1", 10) == 3


def test_all_together_have_theirs() -> None:
    tries = Tries()
    assert sum(tries.let_through(f"192.0.2.{n}") for n in range(20)) == 5


def test_what_was_right_does_not_count() -> None:
    tries = Tries()
    for _ in range(20):
        tries.guesses.take("192.0.2.1")
        tries.guesses.give_back("192.0.2.1")
    assert tries.let_through("192.0.2.1", 10) == 3


def test_many_addresses_take_no_memory_and_get_no_more_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "MOST_ADDRESSES", 10)
    tries = Tries()
    assert sum(tries.let_through(f"192.0.2.{n % 100}") for n in range(1000)) == 5
    assert len(tries.guesses._by_address) <= 10
