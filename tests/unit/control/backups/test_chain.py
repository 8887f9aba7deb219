"""Which files lead where: as trying every way finds it."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.backups.chain import ChainError, chain, last_at, restorable
from control.backups.objects import BackupFile

MOST = 14

levels = st.sampled_from([0, 1, 2])


@st.composite
def folders(draw: st.DrawFn) -> list[BackupFile]:
    """Any files: with gaps, side by side, overlapping."""
    found = {BackupFile(9, 1, last) for last in draw(st.lists(st.integers(1, MOST), max_size=3))}
    for first, more, level in draw(st.lists(st.tuples(st.integers(2, MOST), st.integers(0, 4), levels), max_size=14)):
        found.add(BackupFile(level, first, min(MOST, first + more)))
    return draw(st.permutations(sorted(found)))


def fewest(files: list[BackupFile], to: int) -> int | None:
    """How many files lead to a transaction at least from its newest snapshot, by trying all ways."""
    starts = [file.last for file in files if file.first == 1 and file.last <= to]

    def steps(at: int) -> int | None:
        if at == to:
            return 1
        ways = [steps(file.last) for file in files if file.first <= at + 1 and at < file.last <= to]
        return min((way + 1 for way in ways if way is not None), default=None)

    return steps(max(starts)) if starts else None


@given(folders(), st.integers(1, MOST))
def test_a_chain_leads_to_the_transaction_with_the_fewest_files(files: list[BackupFile], to: int) -> None:
    expected = fewest(files, to)
    if expected is None:
        with pytest.raises(ChainError) as caught:
            chain(files, to)
        reached = caught.value.reached
        assert reached < to
        assert reached == 0 or fewest(files, reached) is not None
        return
    found = chain(files, to)
    assert len(found) == expected
    assert found[0].first == 1
    assert found[0].last == max(file.last for file in files if file.first == 1 and file.last <= to)
    assert all(one.first < two.first <= one.last + 1 and one.last < two.last for one, two in itertools.pairwise(found))
    assert found[-1].last == to
    assert set(found) <= set(files)


@given(folders())
def test_the_restorable_transactions_are_those_with_a_chain(files: list[BackupFile]) -> None:
    found = restorable(files)
    assert [file.last for file in found] == [to for to in range(1, MOST + 1) if fewest(files, to) is not None]
    assert set(found) <= set(files)


@given(folders())
def test_the_latest_is_the_last_that_any_file_has(files: list[BackupFile]) -> None:
    latest = max((file.last for file in files), default=0)
    if fewest(files, latest) is None:
        with pytest.raises(ChainError):
            chain(files)
    else:
        assert chain(files) == chain(files, latest)


@pytest.mark.parametrize(
    ("files", "to", "text", "reached"),
    [
        ([], None, "no snapshot up to transaction 0 is at the store", 0),
        ([BackupFile(9, 1, 8)], 7, "no snapshot up to transaction 7 is at the store", 0),
        ([BackupFile(9, 1, 3), BackupFile(0, 6, 7)], 7, "of transactions 4 to 5 no file is at the store", 3),
        ([BackupFile(9, 1, 3), BackupFile(0, 4, 4)], 9, "what is at the store ends with transaction 4", 4),
        (
            [BackupFile(9, 1, 3), BackupFile(1, 4, 9)],
            6,
            "transaction 6 is inside a file of transactions 4 to 9: only 3 and 9 can be brought back",
            3,
        ),
    ],
)
def test_a_gap_is_named(files: list[BackupFile], to: int | None, text: str, reached: int) -> None:
    with pytest.raises(ChainError) as caught:
        chain(files, to)
    assert (str(caught.value), caught.value.reached) == (text, reached)


def test_a_merged_file_is_taken_before_the_shipment_with_the_same_transactions() -> None:
    """The shipment may be deleted at any moment."""
    assert chain([BackupFile(9, 1, 1), BackupFile(0, 2, 2), BackupFile(1, 2, 2)])[1].level == 1


@given(st.lists(st.integers(0, 50), min_size=0, max_size=40).map(sorted), st.integers(-1, 51))
def test_the_last_at_a_time_is_found_in_few_headers(times: list[int], at: int) -> None:
    ends = [BackupFile(0, number, number) for number in range(1, len(times) + 1)]
    read = []

    async def made_ms(file: BackupFile) -> int:
        read.append(file)
        return times[file.last - 1]

    found = asyncio.run(last_at(ends, at, made_ms))
    earlier = [end for end, time in zip(ends, times, strict=True) if time <= at]
    assert found == (earlier[-1] if earlier else None)
    assert len(read) <= len(ends).bit_length()
