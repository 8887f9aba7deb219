"""What is merged: nothing new, nothing across a state that must stay, and every other state's chain stays whole."""

from hypothesis import given
from hypothesis import strategies as st

from control.backups import merging
from control.backups.chain import chain, restorable
from control.backups.merging import DAY_MS, HOUR_MS, MINUTE_MS
from control.backups.objects import MERGED, SNAPSHOT, BackupFile

NOW = 10 * DAY_MS


@st.composite
def lineages(draw: st.DrawFn) -> tuple[list[BackupFile], dict[BackupFile, int]]:
    """Snapshots and shipments, some missing, made up to two hours ago, 20 s apart or so."""
    steps = draw(st.lists(st.integers(0, 3 * MINUTE_MS), min_size=30, max_size=30))
    start = NOW - HOUR_MS - draw(st.integers(0, 60)) * MINUTE_MS
    times = [start + sum(steps[:at]) for at in range(len(steps))]
    missing = draw(st.sets(st.integers(2, 29), max_size=3))
    files = [BackupFile(0, at, at) for at in range(2, 30) if at not in missing]
    files += [BackupFile(9, 1, last) for last in {1, *draw(st.sets(st.integers(2, 29), max_size=2))}]
    return files, {file: times[file.last] for file in files}


@given(lineages(), st.sets(st.integers(1, 29), max_size=3))
def test_minutes_are_merged_up_to_the_states_that_must_stay(
    lineage: tuple[list[BackupFile], dict[BackupFile, int]], cuts: set[int]
) -> None:
    files, times = lineage
    groups = merging.minutes(files, times, NOW, cuts)
    ends = cuts | {file.last for file in files if file.whole}
    for group in groups:
        assert len(group) > 1
        assert all(times[file] <= NOW - HOUR_MS for file in group)
        assert len({times[file] // MINUTE_MS for file in group}) == 1
        assert not ends & {file.last for file in group[:-1]}
    merged = {BackupFile(MERGED, group[0].first, group[-1].last) for group in groups}
    both = [*files, *merged]
    gone = merging.covered(both)
    assert gone == sorted(file for group in groups for file in group)
    before, after = ({file.last for file in restorable(some)} for some in (files, set(both) - set(gone)))
    inside = {file.last for group in groups for file in group[:-1]}
    assert before - inside == after
    assert before & cuts == after & cuts


@given(lineages())
def test_a_snapshot_is_merged_a_day_after_the_one_before(
    lineage: tuple[list[BackupFile], dict[BackupFile, int]],
) -> None:
    files, times = lineage
    assert merging.snapshot_due(files, times, NOW) == [], "the newest one is younger than a day"
    old = {file: at - DAY_MS for file, at in times.items()}
    found = merging.snapshot_due(files, old, NOW)
    newest = max(file.last for file in files if file.whole)
    due = [file.last for file in restorable(files) if file.last > newest and old[file] <= NOW - HOUR_MS]
    assert [file.last for file in found[-1:]] == due[-1:]
    if found:
        made = BackupFile(SNAPSHOT, 1, found[-1].last)
        assert chain([*files, made], made.last) == [made]
