"""The properties of the simulated fleet hold for the first SKERRY_TEST_SEEDS seeds, and for a hundred nodes.

20 seeds find every way to break the program that `tests/simulation/test_mutations.py` has; `just faults` tries
thousands.
"""

import os

import pytest

from tests.support.simulation import runs

SEEDS = int(os.environ.get("SKERRY_TEST_SEEDS", "20"))


@pytest.mark.parametrize("part", runs.parts(0, SEEDS), ids=str)
def test_the_fleet_keeps_its_promises(part: range) -> None:
    runs.check(part)


@pytest.mark.parametrize("seed", range(max(1, SEEDS // 50)))
def test_a_hundred_nodes_keep_their_promises(seed: int) -> None:
    runs.check([seed], nodes=100)
