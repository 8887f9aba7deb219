"""The grid's blocks: each cell is drawn where it is, and the markup stays small for any fleet."""

import random
import re
from datetime import UTC, datetime

import pytest

from control.console import fleet_grid
from control.sync.standing import LETTERS
from control.telemetry.fleet_summary import FleetGrid, FleetSummary, GroupGrid


def draw(letters: str) -> fleet_grid.GroupBlocks:
    names = " ".join(f"shop-{n}" for n in range(len(letters)))
    now = datetime.now(UTC)
    return fleet_grid.draw(FleetGrid(now, {"shops": GroupGrid(letters, names)}, FleetSummary(now, ())))["shops"]


def cells(drawing: str) -> dict[int, str]:
    """The kind of each cell that isn't at its target, by its place."""
    found: dict[int, str] = {}
    for kind, path in re.findall(r'<path stroke="url\(#k-(\w+)\)" d="([^"]*)"', drawing):
        x = y = 0
        for dx, dy, length in re.findall(r"m(-?\d+),(-?\d+)h(\d+)", path):
            x, y = x + int(dx), y + int(dy)
            assert (y - 3) % 6 == x % 6 == int(length) % 6 == 0
            for step in range(int(length) // 6):
                place = (y - 3) // 6 * 10 + x // 6 + step
                assert place not in found
                found[place] = kind
            x += int(length)
    return found


@pytest.mark.parametrize("count", [1, 9, 10, 11, 99, 100])
def test_each_cell_is_drawn_where_it_is(count: int) -> None:
    seeded = random.Random(count)
    letters = "".join(seeded.choice("".join(LETTERS)) for _ in range(count))
    [block] = draw(letters).blocks
    expected = {at: fleet_grid.KINDS[LETTERS[letter]] for at, letter in enumerate(letters) if letter != "t"}
    assert cells(block.drawing) == expected


@pytest.mark.parametrize("letters", ["b" * 10_000, "o" * 10_000, "f" * 10_000, "tf" * 5000])
def test_a_fleet_of_which_nothing_is_well_is_a_small_page(letters: str) -> None:
    drawn = draw(letters)
    assert len(drawn.blocks) == 100
    assert sum(len(block.drawing) for block in drawn.blocks) < 70_000


def test_a_mixed_fleet_is_a_small_page() -> None:
    letters = "".join(random.Random(1).choices("fosbt", (1, 1, 2, 3, 3), k=10_000))
    assert sum(len(block.drawing) for block in draw(letters).blocks) < 80_000
