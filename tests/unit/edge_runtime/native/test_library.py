"""What is built is loaded only if it is whole, and made of the sources beside it; otherwise it is told why."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from edge_runtime.built import parts
from edge_runtime.native import library

ANEW = "`just compile` builds it anew"


@pytest.fixture(autouse=True)
def _not_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKERRY_EDGE_PURE", raising=False)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a build leaves: any bytes, and their stamp."""
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / library.LIBRARY).write_bytes(b"no library")
    (folder / library.OUTER).write_bytes(b"no module")
    stamp(folder)
    monkeypatch.setattr(library, "BUILT", folder)
    return folder


def stamp(folder: Path, **changed: str) -> None:
    made = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (library.LIBRARY, library.OUTER)
    } | {"sources": library.sources()}
    (folder / library.STAMP).write_text(json.dumps(made | changed))


def why() -> tuple[str, bool]:
    """Why what is built isn't used, without the caches; and whether it is stale."""
    found = library.unfit.__wrapped__()
    return ("", False) if found is None else (str(found), found.stale)


def test_what_fits_is_used(built: Path) -> None:
    assert why() == ("", False)


@pytest.mark.parametrize("name", [library.LIBRARY, library.OUTER])
def test_a_damaged_file_is_not_loaded(built: Path, name: str) -> None:
    content = bytearray((built / name).read_bytes())
    content[3] ^= 1
    (built / name).write_bytes(content)
    assert why() == (f"its file {name} isn't the one that was built; {ANEW}", True)


@pytest.mark.parametrize("change", ["changed", "added", "removed", "renamed"])
def test_one_of_other_sources_is_not_loaded(built: Path, tmp_path: Path, change: str) -> None:
    other = tmp_path / "sources"
    shutil.copytree(library.FOLDER, other, ignore=shutil.ignore_patterns("built"))
    assert library.sources(other) == library.sources()
    match change:
        case "changed":
            (other / "parts.h").write_text((other / "parts.h").read_text() + "\n")
        case "added":
            (other / "more.c").write_text("")
        case "removed":
            (other / "answers.c").unlink()
        case "renamed":
            (other / "answers.c").rename(other / "answer.c")
    stamp(built, sources=library.sources(other))
    assert why() == (f"it is built from other sources than are here; {ANEW}", True)


@pytest.mark.parametrize("name", [library.LIBRARY, library.OUTER, library.STAMP])
def test_a_part_that_is_missing(built: Path, name: str) -> None:
    (built / name).unlink()
    assert why() == ("it isn't built; `just compile` builds it", True)


def test_nothing_is_built(built: Path) -> None:
    shutil.rmtree(built)
    assert why() == ("it isn't built; `just compile` builds it", False)


@pytest.mark.parametrize("text", ["", "{", '"a"', "[]", "{}", "\xff"])
def test_a_stamp_that_says_something_else(built: Path, text: str) -> None:
    (built / library.STAMP).write_text(text, encoding="latin-1")
    said, stale = why()
    assert ANEW in said
    assert stale


def test_it_is_not_asked_for(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_EDGE_PURE", "1")
    assert why() == ("SKERRY_EDGE_PURE is set", False)


def test_one_that_the_system_cannot_load(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what was built, by its stamp, and no library: of another processor, say."""
    monkeypatch.setattr(library, "unfit", lambda: None)
    with pytest.raises(library.Unusable, match="it can't be loaded") as refused:
        library.opened.__wrapped__()
    assert ANEW in str(refused.value)
    assert refused.value.stale


def test_log_and_status_tell_why(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp(built, sources="0" * 64)
    monkeypatch.setattr(library, "unfit", library.unfit.__wrapped__)
    part = parts.document()["workers' loop"]
    assert part == {"compiled": False, "why": f"it is built from other sources than are here; {ANEW}", "stale": True}
    assert parts.told("workers' loop", part) == (
        f"the workers' loop is not compiled: it is built from other sources than are here; {ANEW}"
    )


def test_what_workers_say_of_it_comes_before_what_is_built(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "unfit", lambda: None)
    assert parts.document()["workers' loop"]["compiled"]
    assert parts.document("it can't be loaded")["workers' loop"] == {
        "compiled": False, "why": "it can't be loaded", "stale": True,
    }  # fmt: skip
