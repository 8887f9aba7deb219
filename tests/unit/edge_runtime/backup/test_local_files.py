"""The folder of files that wait for their upload: what is in it, in which order, and what a kill leaves."""

import os
from pathlib import Path

import msgspec
import pytest

from control.protocol import ltx
from edge_runtime import wal
from edge_runtime.backup.local_files import SHIPMENTS, SNAPSHOTS, History, LocalFiles, Reached

PAGE = 512


@pytest.fixture
def local(tmp_path: Path) -> LocalFiles:
    (tmp_path / wal.BACKUP).mkdir()
    return LocalFiles(tmp_path)


def put(local: LocalFiles, history: History, level: int, first: int, last: int) -> None:
    with (local.level(history.lineage, level) / ltx.name(first, last)).open("wb") as file:
        ltx.write(file, ltx.Header(PAGE, 1, first, last, 1000 + last), [(1, bytes(PAGE))])


def told(local: LocalFiles) -> list[tuple[int, int, int]]:
    return [(one.level, one.first, one.last) for one in local.waiting()]


def count(local: LocalFiles, history: History, last: int) -> History:
    counted = msgspec.structs.replace(history, last=last, broken=False)
    local.write(counted)
    return counted


def test_files_go_in_order_and_are_forgotten_at_the_store(local: LocalFiles) -> None:
    assert not local.is_on
    assert local.lineage() is None
    history = local.begin(7)
    assert local.is_on
    assert told(local) == []
    put(local, history, SNAPSHOTS, 1, 1)
    for number in (3, 2):
        put(local, history, SHIPMENTS, number, number)
    count(local, history, 3)
    assert told(local) == [(9, 1, 1), (0, 2, 2), (0, 3, 3)]
    assert local.reached(history.lineage) is None
    first, second, _ = local.waiting()
    assert first.lineage == history.lineage
    assert first.size == first.path.stat().st_size
    local.uploaded(first)
    local.uploaded(second)
    local.uploaded(second)
    assert told(local) == [(0, 3, 3)]
    assert local.reached(history.lineage) == Reached(2, 1002)


def test_a_file_that_is_not_counted_is_not_shown_and_its_number_is_given_again(local: LocalFiles) -> None:
    history = local.begin(7)
    put(local, history, SNAPSHOTS, 1, 1)
    counted = count(local, history, 1)
    put(local, counted, SHIPMENTS, 2, 2)
    put(local, counted, SNAPSHOTS, 1, 2)
    part = local.level(history.lineage, SHIPMENTS) / f"{ltx.name(2, 2)}.part"
    part.write_bytes(b"x")
    assert told(local) == [(9, 1, 1)]
    local.clean(counted)
    assert os.listdir(part.parent) == []
    assert told(local) == [(9, 1, 1)]


def test_of_files_that_were_merged_only_the_whole_is_shown(local: LocalFiles) -> None:
    history = local.begin(7)
    put(local, history, SNAPSHOTS, 1, 3)
    for first, last in ((4, 4), (5, 5), (4, 5), (6, 6)):
        put(local, history, SHIPMENTS, first, last)
    counted = count(local, history, 6)
    assert told(local) == [(9, 1, 3), (0, 4, 5), (0, 6, 6)]
    local.clean(counted)
    assert len(os.listdir(local.level(history.lineage, SHIPMENTS))) == 2


def test_older_histories_go_first_and_are_gone_at_their_end(local: LocalFiles) -> None:
    first = local.begin(7)
    put(local, first, SNAPSHOTS, 1, 1)
    count(local, first, 1)
    second = local.begin(8)
    assert second.lineage > first.lineage
    assert (second.inode, second.broken) == (8, True)
    put(local, second, SNAPSHOTS, 1, 1)
    count(local, second, 1)
    assert [one.lineage for one in local.waiting()] == [first.lineage, second.lineage]
    local.uploaded(local.waiting()[0])
    assert not (local.folder / first.lineage).exists()
    local.uploaded(local.waiting()[0])
    assert (local.folder / second.lineage).exists()


def test_a_backup_that_ends_leaves_nothing(local: LocalFiles) -> None:
    history = local.begin(7)
    put(local, history, SNAPSHOTS, 1, 1)
    count(local, history, 1)
    local.end()
    assert not local.is_on
    assert local.waiting() == []
    assert os.listdir(local.folder) == []


def test_a_damaged_note_is_no_history(local: LocalFiles) -> None:
    local.begin(7)
    (local.folder / "lineage.json").write_text("{")
    assert local.is_on
    assert local.lineage() is None
