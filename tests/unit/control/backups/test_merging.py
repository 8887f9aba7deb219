"""What is merged: nothing across a state that must stay; and after any merging and sweeping, each state of the
retention is there at its grain."""

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from control.backups import merging, retention
from control.backups.chain import chain, restorable
from control.backups.merging import MINUTE_MS
from control.backups.objects import MERGED, SNAPSHOT, BackupFile

LAST = 30


@dataclass
class Lineage:
    files: set[BackupFile]
    times: list[int]
    """When each transaction was shipped, in ms."""
    cuts: set[int]

    def at(self, file: BackupFile) -> int:
        return self.times[file.last]

    def minute(self, transaction: int) -> int:
        return self.times[transaction] // MINUTE_MS


@st.composite
def lineages(draw: st.DrawFn) -> Lineage:
    """Snapshots and shipments, some missing, up to a minute apart; boundaries."""
    steps = draw(st.lists(st.integers(0, MINUTE_MS), min_size=LAST, max_size=LAST))
    times = [sum(steps[:at]) for at in range(LAST)]
    missing = draw(st.sets(st.integers(2, LAST - 1), max_size=3))
    files = {BackupFile(0, at, at) for at in range(2, LAST) if at not in missing}
    files |= {BackupFile(9, 1, last) for last in {1, *draw(st.sets(st.integers(2, LAST - 1), max_size=2))}}
    return Lineage(files, times, draw(st.sets(st.integers(1, LAST - 1), max_size=3)))


def groups(lineage: Lineage, to: int) -> list[list[BackupFile]]:
    """The groups of the shipments up to a transaction, as a pass makes them."""
    due = [file for file in lineage.files if file.level == 0 and file.last <= to]
    ends = lineage.cuts | {file.last for file in lineage.files if file.whole}
    return merging.minutes(due, {file: lineage.at(file) for file in due}, ends)


@given(lineages(), st.integers(1, LAST))
def test_minutes_are_merged_up_to_the_states_that_must_stay(lineage: Lineage, to: int) -> None:
    for group in groups(lineage, to):
        assert 1 < len(group) <= merging.MOST
        assert len({lineage.minute(file.last) for file in group}) == 1
        assert not lineage.cuts & {file.last for file in group[:-1]}
        assert all(two.first == one.last + 1 for one, two in itertools.pairwise(group))


@given(lineages())
def test_all_of_a_minute_is_merged(lineage: Lineage) -> None:
    """Two files stay apart for a reason: another minute, a gap, or a state that must stay."""
    ends = lineage.cuts | {file.last for file in lineage.files if file.whole}
    inside = {(one.last, two.first) for group in groups(lineage, LAST) for one, two in itertools.pairwise(group)}
    shipments = sorted(file for file in lineage.files if file.level == 0)
    for one, two in itertools.pairwise(shipments):
        apart = two.first != one.last + 1 or one.last in ends or lineage.minute(one.last) != lineage.minute(two.last)
        assert apart == ((one.last, two.first) not in inside)


acts = st.lists(
    st.one_of(
        st.tuples(st.just("merge"), st.integers(1, LAST), st.integers(0, 40)),
        st.tuples(st.just("snapshot"), st.integers(1, LAST), st.just(0)),
        st.tuples(st.just("sweep"), st.integers(0, LAST * MINUTE_MS), st.integers(0, 40)),
        st.tuples(st.just("finish"), st.just(0), st.integers(0, 40)),
    ),
    max_size=8,
)


@given(lineages(), acts)
def test_after_any_passes_and_kills_each_state_of_the_retention_is_there_at_its_grain(
    lineage: Lineage, done: list[tuple[str, int, int]]
) -> None:
    """Each act is cut off after a number of steps: a step puts a file, or deletes one."""
    before = {file.last for file in restorable(lineage.files)}
    since = -1
    for act, value, steps in done:
        puts: list[BackupFile] = []
        gone: list[BackupFile] = []
        if act == "merge":
            # As `Merger.merge` does: each merged file before its own shipments go.
            for group in groups(lineage, value):
                puts.append(BackupFile(MERGED, group[0].first, group[-1].last))
                gone += group
        elif act == "snapshot" and value in {file.last for file in restorable(lineage.files)}:
            puts.append(BackupFile(SNAPSHOT, 1, value))
        elif act == "sweep":
            since = max(since, value)
            made = {file: lineage.at(file) for file in lineage.files if file.whole}
            gone = retention.unneeded(lineage.files, retention.oldest_needed(made, since))
        elif act == "finish":
            gone = [file for some in merging.covered(lineage.files, lineage.cuts).values() for file in some]
        lineage.files |= set(puts)
        lineage.files -= set(gone[:steps])
        after = {file.last for file in restorable(lineage.files)}
        kept = [at for at in before if lineage.times[at] > since]
        kept += [at for at in sorted(before) if lineage.times[at] <= since][-1:]
        for at in kept:
            grain = {later for later in after if later >= at and lineage.minute(later) == lineage.minute(at)}
            assert grain, (at, sorted(after))
            if at in lineage.cuts:
                assert at in after


def test_what_a_merged_file_has_is_left_where_a_boundary_is_inside_of_it() -> None:
    shipments = [BackupFile(0, at, at) for at in (2, 3, 4)]
    merged = BackupFile(MERGED, 2, 4)
    files = [BackupFile(9, 1, 1), *shipments, merged]
    assert merging.covered(files, ()) == {merged: shipments}
    assert merging.covered(files, {4, 1}) == {merged: shipments}
    assert merging.covered(files, {3}) == {}
    assert merging.covered([BackupFile(9, 1, 1), merged], ()) == {}
    assert chain(files)[1:] == [merged]


def test_no_more_files_become_one_than_may() -> None:
    many = [BackupFile(0, at, at) for at in range(2, 2 + 2 * merging.MOST)]
    found = merging.minutes(many, dict.fromkeys(many, 0), ())
    assert [len(group) for group in found] == [merging.MOST, merging.MOST]
