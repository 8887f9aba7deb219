"""The properties of the fleet hold for the first 500 seeds; the next 500 are in a file of their own, for a process."""

import pytest

from tests.support.simulation import runs


@pytest.mark.parametrize("part", runs.parts(0, 500), ids=str)
def test_the_fleet_keeps_its_promises(part: range) -> None:
    runs.check(part)
