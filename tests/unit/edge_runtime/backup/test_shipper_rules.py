"""Where the shipper goes on in a log that may have begun anew, and which files it merges."""

from pathlib import Path

import pytest

from edge_runtime.backup.local_files import WaitingFile
from edge_runtime.backup.shipper import Broken, _followed, _parts, _Place
from edge_runtime.wal import LogState


def salt(first: int, second: int = 7) -> bytes:
    return first.to_bytes(4, "big") + second.to_bytes(4, "big")


def log(which: bytes, frames: int) -> LogState:
    return LogState(frames, 0, 4096, 9, which)


def test_the_same_log_is_gone_on_in() -> None:
    place = _Place(salt(5), 3, b"checksum")
    assert _followed(place, log(salt(5), 3)) is place
    assert _followed(place, log(salt(5), 9)) is place


@pytest.mark.parametrize("before", [5, 0xFFFF_FFFF])
def test_the_log_that_follows_is_read_from_its_beginning(before: int) -> None:
    after = salt((before + 1) & 0xFFFF_FFFF, 8)
    assert _followed(_Place(salt(before), 3, b"checksum"), log(after, 2)) == _Place(after, 0, b"")


def test_an_empty_log_may_get_any_salts() -> None:
    assert _followed(_Place(salt(5), 0, b""), log(salt(77), 2)) == _Place(salt(77), 0, b"")


@pytest.mark.parametrize("after", [log(salt(7), 2), log(salt(4), 2), log(salt(5, 8), 4), log(salt(5), 2)])
def test_what_may_lack_something_is_a_break(after: LogState) -> None:
    with pytest.raises(Broken):
        _followed(_Place(salt(5), 3, b"checksum"), after)


def test_files_are_merged_up_to_the_boundaries_of_releases() -> None:
    files = [WaitingFile(Path(str(last)), 0, last, last, 1) for last in range(3, 9)]

    def parts(ends: list[int]) -> list[list[int]]:
        return [[one.last for one in part] for part in _parts(files, ends)]

    assert parts([]) == [[3, 4, 5, 6, 7, 8]]
    assert parts([2, 4, 5, 20]) == [[3, 4], [5], [6, 7, 8]]
    assert parts([8]) == [[3, 4, 5, 6, 7, 8], []]
