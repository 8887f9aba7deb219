"""The order in which processes of the tests begin with files, and what is kept of a run for the next one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import long_files


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "folder" / "seconds.json"
    monkeypatch.setattr(long_files, "_place", lambda: found)
    return found


def test_long_files_come_first_and_the_others_as_they_were() -> None:
    others = ["short.py::one", "new.py::one", "brief.py::one"]
    nodeids = ["a.py::one", others[0], "b.py::one[x::y]", "b.py::two", others[1], "a.py::two", others[2]]
    items: list[Any] = [SimpleNamespace(nodeid=nodeid) for nodeid in nodeids]
    long_files.sort(items, {"a.py": 20.0, "b.py": 90.0, "short.py": 2.0, "brief.py": 5.0})
    order = [item.nodeid for item in items]
    assert order == ["b.py::one[x::y]", "b.py::two", "a.py::one", "a.py::two", *others]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"a.py": "x"}', '{"a.py": null}', "\x00"])
def test_where_nothing_is_kept_that_can_be_read_it_begins_with_those_that_are_known(
    place: Path, text: str | None
) -> None:
    if text is not None:
        place.parent.mkdir()
        place.write_text(text)
    assert long_files.kept() == long_files.FIRST_RUN
    assert all((long_files.ROOT / file).exists() for file in long_files.FIRST_RUN)


def test_what_is_kept_is_there_for_the_next_run(place: Path) -> None:
    for seconds in ({"a.py": 20.04, "b.py": 3.0}, {"b.py": 4.0}):
        long_files.keep(seconds)
        assert long_files.kept() == {file: round(each, 1) for file, each in seconds.items()}
    assert list(place.parent.iterdir()) == [place]
