"""The properties of the fleet hold for the first 250 seeds; `tests/faults/test_simulation.py` tries later ones."""

import pytest

from tests.support.simulation import runs


@pytest.mark.parametrize("part", runs.parts(0, 250), ids=str)
def test_the_fleet_keeps_its_promises(part: range) -> None:
    runs.check(part)
