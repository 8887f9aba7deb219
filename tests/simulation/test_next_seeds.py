"""The properties of the fleet hold for the seeds from 500 to 999."""

import pytest

from tests.support.simulation import runs


@pytest.mark.parametrize("part", runs.parts(500, 1000), ids=str)
def test_the_fleet_keeps_its_promises(part: range) -> None:
    runs.check(part)
