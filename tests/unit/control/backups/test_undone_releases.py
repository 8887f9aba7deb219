"""Which release a state of a node's database has, which releases a restore of it undoes, and which tables differ."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from control.backups import losses, restores
from control.backups.losses import DifferingRows
from control.backups.restores import Arrival
from control.backups.targets import RestorableState

NOON = datetime(2026, 12, 2, 12, tzinfo=UTC)
OLD, NEW = "0" * 32, "1" * 32


def state(lineage: str, transaction: int, minute: float) -> RestorableState:
    return RestorableState(lineage, transaction, NOON + timedelta(minutes=minute), [], 0)


def arrival(number: int, lineage: str, transaction: int, minute: float) -> Arrival:
    return Arrival(UUID(int=number), "default", number, lineage, transaction, NOON + timedelta(minutes=minute))


def test_of_its_own_history_a_state_counts_by_transactions() -> None:
    arrivals = [arrival(1, OLD, 0, 0), arrival(2, OLD, 5, 10)]
    # The clocks of the node and of control may differ by minutes.
    for minute in (-60, 60):
        for transaction, release, gone in ((1, 1, [2]), (5, 1, [2]), (6, 2, [])):
            found = restores.had(arrivals, state(OLD, transaction, minute))
            assert found is not None
            assert found.number == release
            assert [each.number for each in restores.undone(arrivals, state(OLD, transaction, minute))] == gone


def test_of_other_histories_a_state_counts_by_time() -> None:
    arrivals = [arrival(1, OLD, 0, 0), arrival(2, OLD, 5, 10), arrival(1, "", 0, 20), arrival(3, NEW, 2, 30)]
    # Restored to before 2 at 12:20, as another history.
    found = restores.had(arrivals, state(NEW, 1, 25))
    assert found is not None
    assert found.number == 1
    assert [each.number for each in restores.undone(arrivals, state(NEW, 1, 25))] == [3]
    assert [each.number for each in restores.undone(arrivals, state(OLD, 5, 9))] == [2, 3]
    assert restores.had([], state(OLD, 5, 9)) is None


@given(
    st.lists(st.tuples(st.sampled_from([OLD, NEW]), st.integers(0, 9)), unique=True, max_size=8),
    st.sampled_from([OLD, NEW]),
    st.integers(1, 10),
)
def test_each_release_came_before_a_state_or_is_undone(
    places: list[tuple[str, int]], lineage: str, transaction: int
) -> None:
    """As things happen: one history after the other, and each transaction later than the one before it."""

    def minute(lineage: str, transaction: int) -> int:
        return (0 if lineage == OLD else 100) + transaction

    arrivals = [arrival(at, *place, minute(*place) + 0.5) for at, place in enumerate(sorted(places), start=1)]
    meant = state(lineage, transaction, minute(lineage, transaction))
    gone = [each.number for each in restores.undone(arrivals, meant)]
    there = restores.had(arrivals, meant)
    # In their order: up to the one that it has, and all after that.
    assert gone == list(range(len(arrivals) + 1))[1 if there is None else there.number + 1 :]


def rows(tables: str) -> st.SearchStrategy[dict[str, int]]:
    return st.dictionaries(st.sampled_from(tables), st.integers(0, 3))


@given(rows("abcde"), rows("cdefg"))
def test_tables_differ_where_one_is_missing_or_has_other_rows(then: dict[str, int], now: dict[str, int]) -> None:
    found = losses.differing(then, now)
    assert [each.table for each in found] == sorted({each.table for each in found})
    by_name = {each.table: each for each in found}
    for table in "abcdefg":
        if then.get(table) == now.get(table):
            assert table not in by_name
        else:
            assert by_name[table] == DifferingRows(table, then.get(table), now.get(table))
