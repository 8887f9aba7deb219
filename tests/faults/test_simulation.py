"""The simulated fleet with more seeds, and with a hundred nodes: SKERRY_TEST_SEEDS says how many seeds."""

import os

import pytest

from tests.support.simulation import runs

SEEDS = int(os.environ.get("SKERRY_TEST_SEEDS", "25"))
FIRST = 250
"""Those below are in tests/simulation."""


@pytest.mark.parametrize("part", runs.parts(FIRST, FIRST + SEEDS), ids=str)
def test_the_fleet_keeps_its_promises_for_more_seeds(part: range) -> None:
    runs.check(part)


@pytest.mark.parametrize("seed", range(max(2, SEEDS // 50)))
def test_a_hundred_nodes_keep_their_promises(seed: int) -> None:
    runs.check([seed], nodes=100)
