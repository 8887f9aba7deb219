"""What ends a rehearsal before it has a result."""

from pathlib import Path

import pytest

from edge_runtime import files, wal
from edge_runtime.ipc.rehearsal_messages import RehearsalTask
from edge_runtime.oneshot import rehearse
from edge_runtime.oneshot.rehearse import RehearsalWatch, Untried
from edge_runtime.wal import Index
from tests.support.plans import plan

LIMIT = 32 << 20


@pytest.fixture
def watch(tmp_path: Path) -> RehearsalWatch:
    """A rehearsal that may take an hour."""
    (tmp_path / "rehearsal").mkdir()
    task = RehearsalTask(0, str(tmp_path), plan(1), [], {}, 0, [], {}, False, LIMIT, 3600.0)
    return RehearsalWatch(task, tmp_path / "rehearsal", task.seconds)


def code(watch: RehearsalWatch) -> str:
    with pytest.raises(Untried) as untried:
        watch.look()
    return untried.value.code


def test_it_goes_on_while_there_is_room_and_time(watch: RehearsalWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "read", lambda _: Index(100, 100, 4120))
    watch.look()
    watch.copying = False
    watch.look()


def test_a_disk_that_fills_up_ends_it(watch: RehearsalWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: rehearse.RESERVE - 1)
    assert code(watch) == "rehearsal_no_room"


def test_a_long_log_ends_the_copy_and_nothing_later(watch: RehearsalWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "read", lambda _: Index(LIMIT // 4 // 4000, 0, 4120))
    assert code(watch) == "rehearsal_log_long"
    watch.copying = False
    watch.look()


def test_the_end_of_its_time_says_what_ran(watch: RehearsalWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.doing = "schema change 3, statement: UPDATE items"
    monkeypatch.setattr(rehearse.time, "monotonic", lambda: float("inf"))
    with pytest.raises(Untried, match="UPDATE items"):
        watch.look()
