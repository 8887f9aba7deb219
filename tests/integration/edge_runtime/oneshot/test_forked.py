"""What a child writes line by line, and what of it counts when its time is over."""

import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import msgspec
import pytest

from edge_runtime.oneshot import forked, sql_command
from edge_runtime.oneshot.sql_command import SqlEvent, SqlFailed


def test_lines_come_whole_however_long_they_are() -> None:
    lines = [b"", b"a", b"b" * 1_000_000, b"", b"c" * 70_000, b"d"]

    def work(out: BinaryIO) -> None:
        out.write(b"\n".join(lines) + b"\n")

    assert list(forked.forked_lines(work, lambda: None)) == lines


def test_what_a_child_has_written_by_its_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(out: BinaryIO) -> None:
        out.write(b"committing\n")
        out.flush()
        time.sleep(600)

    def late(reading: list[int], *_: Any) -> tuple[list[int], list[int], list[int]]:
        """Time is over just before something comes."""
        select.select(reading, [], [])
        return [], [], []

    monkeypatch.setattr(forked, "select", SimpleNamespace(select=late))
    lines = forked.forked_lines(work, lambda: 0.0)
    assert next(lines) == b"committing"
    with pytest.raises(TimeoutError):
        next(lines)


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([SqlEvent(waiting=True)], TimeoutError),
        ([SqlEvent(committing=True)], SqlFailed),
        ([SqlEvent(committing=True), SqlEvent(done=True)], None),
        ([SqlEvent(changed=0), SqlEvent(done=True)], None),
    ],
)
def test_nobody_says_that_nothing_was_changed_who_does_not_know(
    monkeypatch: pytest.MonkeyPatch, events: list[SqlEvent], end: type[Exception] | None
) -> None:
    def lines(_work: Callable[[BinaryIO], None], _may_take: Callable[[], float | None]) -> Iterator[bytes]:
        yield from map(msgspec.json.encode, events)
        raise TimeoutError

    monkeypatch.setattr(sql_command, "forked_lines", lines)
    found = sql_command.run(Path("none"), ["SELECT 1"], [], write=True, seconds=1, wal_limit=1)
    if end is None:
        assert list(found) == events
        return
    with pytest.raises(end) as failed:
        list(found)
    assert getattr(failed.value, "code", "") in ("", "commit_unknown")


def test_a_watched_child_is_looked_after_and_ended() -> None:
    lines = [b"a", b"b" * 1_000_000, b""]

    def work(out: BinaryIO) -> None:
        out.write(b"\n".join(lines) + b"\nunfinished")

    assert list(forked.watched_lines(work, lambda: None)) == lines

    def endless(out: BinaryIO) -> None:
        out.write(b"begun\n")
        out.flush()
        time.sleep(600)

    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise KeyError

    watched = forked.watched_lines(endless, look)
    assert next(watched) == b"begun"
    with pytest.raises(KeyError):
        next(watched)


def test_a_watched_child_cant_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "LONGEST", 100_000)

    def work(out: BinaryIO) -> None:
        while True:
            out.write(b"x" * 4096)

    with pytest.raises(ValueError, match="100000"):
        list(forked.watched_lines(work, lambda: None))
