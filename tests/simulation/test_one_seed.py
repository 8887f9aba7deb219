"""A seed repeats a run exactly, here and in another process; and the run of the seed that the environment names."""

import os
import threading

import pytest

from tests.support.simulation import runs, world
from tests.support.simulation.ledger import Violation


def test_the_seed_that_a_failure_named_is_run_again() -> None:
    assert runs.again().trace


def test_a_seed_repeats_a_run_exactly() -> None:
    seeds = range(2)
    digests = [runs.run(seed).digest for seed in seeds]
    assert [runs.run(seed).digest for seed in seeds] == digests
    # Nearly always another than this process has, which draws its own.
    assert runs.elsewhere(seeds, hash_seed=1) == digests


def test_what_another_thread_draws_changes_nothing() -> None:
    expected, ended = runs.run(3).digest, threading.Event()

    def draw() -> None:
        while not ended.wait(0.005):
            os.urandom(8)

    other = threading.Thread(target=draw)
    other.start()
    try:
        assert runs.run(3).digest == expected
    finally:
        ended.set()
        other.join()


def test_another_seed_is_another_run() -> None:
    assert len({runs.run(seed).digest for seed in range(3)}) == 3


def test_a_failure_says_what_happened_last_and_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_world: world.World, *, lost: bool) -> str:
        raise Violation("nothing is as it should be")

    monkeypatch.setattr(world.World, "_unsettled", wrong)
    with pytest.raises(runs.Failed) as failed:
        runs.run(3)
    text = str(failed.value)
    assert "seed 3: nothing is as it should be" in text
    assert "no more faults" in text
    assert "SKERRY_TEST_SEED=3 SKERRY_TEST_NODES=20 just test tests/simulation/test_one_seed.py" in text
