"""How many rows the batches of a step have, by the time that they take."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.sql.run_change import BRIEF, HELD, LEAST, MOST, next_size


def batches(overhead: float, row: float) -> list[tuple[int, float]]:
    """The sizes of forty batches that take so many seconds each, and for each row, with their times."""
    size, found = 1, []
    for _ in range(40):
        held = overhead + size * row
        found.append((size, held))
        size = next_size(size, held)
    return found


@given(st.floats(0, 0.2), st.floats(0, 0.2))
def test_writers_wait_no_longer_than_two_rows_take_or_a_brief_time(overhead: float, row: float) -> None:
    found = batches(overhead, row)
    assert all(1 <= size <= MOST for size, _ in found)
    assert all(size <= 2 * before for (before, _), (size, _) in itertools.pairwise(found))
    assert max(held for _, held in found) <= overhead + max(2 * HELD, 2 * BRIEF, 2 * row)


@given(st.floats(0, 0.49 * BRIEF), st.floats(0, 0.49 * BRIEF / LEAST))
def test_a_slow_commit_alone_does_not_lead_to_batches_of_a_row(overhead: float, row: float) -> None:
    assert min(size for size, _ in batches(overhead, row)[10:]) >= LEAST


def test_batches_of_small_rows_take_the_time_that_they_may() -> None:
    _, held = batches(0.0005, 0.000002)[-1]
    assert 0.5 * HELD < held < 1.5 * HELD
