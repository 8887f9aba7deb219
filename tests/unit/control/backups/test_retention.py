"""What retention sweeps: never a file that a state of the retention needs, and never the newest snapshot."""

from hypothesis import given
from hypothesis import strategies as st

from control.backups import retention
from control.backups.chain import chain, restorable
from control.backups.objects import BackupFile

Lineage = tuple[list[BackupFile], dict[BackupFile, int]]


@st.composite
def lineages(draw: st.DrawFn) -> Lineage:
    """Shipments from 2 on with gaps, merged ones and snapshots, and when each was made: later for later ones."""
    times = sorted(draw(st.lists(st.integers(0, 100), min_size=20, max_size=20)))
    files = {BackupFile(9, 1, last) for last in draw(st.sets(st.integers(1, 20), max_size=5))}
    files |= {BackupFile(0, at, at) for at in draw(st.sets(st.integers(1, 20)))}
    for first in draw(st.sets(st.integers(2, 17), max_size=3)):
        files.add(BackupFile(1, first, first + draw(st.integers(0, 3))))
    return sorted(files), {file: times[file.last - 1] for file in files}


def swept(lineage: Lineage, since: int) -> list[BackupFile]:
    files, times = lineage
    snapshots = {file: at for file, at in times.items() if file.whole}
    return retention.unneeded(files, retention.oldest_needed(snapshots, since))


@given(lineages(), st.integers(-1, 101))
def test_each_state_of_the_retention_is_there_afterwards(lineage: Lineage, since: int) -> None:
    files, times = lineage
    gone = swept(lineage, since)
    kept = [file for file in files if file not in gone]
    before, after = restorable(files), [file.last for file in restorable(kept)]
    wanted = [file for file in before if times[file] > since]
    # What was the state when the retention began is a state of the retention, too.
    wanted += [file for file in before if times[file] <= since][-1:]
    assert {file.last for file in wanted} <= set(after)
    assert all(chain(kept, file.last) == chain(files, file.last) for file in wanted)
    newest = max((file.last for file in files if file.whole), default=None)
    assert newest == max((file.last for file in kept if file.whole), default=None)


@given(lineages(), st.integers(-1, 101))
def test_nothing_older_than_the_snapshot_that_is_needed_is_kept(lineage: Lineage, since: int) -> None:
    files, times = lineage
    kept = {*files} - {*swept(lineage, since)}
    snapshots = sorted((file for file in kept if file.whole), key=lambda file: file.last)
    assert all(times[file] > since for file in snapshots[1:])
    if snapshots and times[snapshots[0]] <= since:
        assert all(file == snapshots[0] or file.last > snapshots[0].last for file in kept)


@given(lineages())
def test_without_a_snapshot_that_is_old_enough_everything_stays(lineage: Lineage) -> None:
    assert swept(lineage, -1) == []
    assert retention.oldest_needed({}, 101) is None
