"""`python -m edge_runtime.oneshot.assemble`: the database of a backup's files, or why there is none."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

import edge_runtime
from control.backups.objects import BackupFile
from control.protocol import ltx
from tests.support.backup_files import BEGUN_MS, EVERY_MS, history, states
from tests.support.deadlines import scaled

# What it imports before its fence is all that it has behind it.
pytestmark = pytest.mark.usefixtures("programs_by_exec")


def assemble(folder: Path, *more: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "edge_runtime.oneshot.assemble", str(folder), *more],
        capture_output=True,
        cwd=Path(edge_runtime.__file__).parents[1],
        timeout=scaled(60),
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = orjson.loads(ran.stdout)
    return found


def put(folder: Path, files: dict[BackupFile, bytes]) -> list[Path]:
    folder.mkdir()
    paths = [folder / ltx.name(file.first, file.last) for file in files]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    return paths


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return states(tmp_path_factory.mktemp("source"), 4)


def test_what_files_come_to_is_the_database_byte_for_byte(made: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    paths = put(folder, history(made))
    answer = assemble(folder)
    assert {name: answer[name] for name in ("ok", "transaction", "at_ms", "bytes", "findings")} == {
        "ok": True,
        "transaction": 4,
        "at_ms": BEGUN_MS + 4 * EVERY_MS,
        "bytes": len(made[-1]),
        "findings": [],
    }
    assert answer["stored"]["release"] is None
    assert answer["rows"] == {"orders": 12}
    assert len(answer["schema_digest"]) == 64
    assert (folder / "skerry.db").read_bytes() == made[-1]
    assert sorted(folder.iterdir()) == sorted([*paths, folder / "skerry.db"]), "it has no log"


def test_files_that_make_no_database_are_named(made: list[bytes], tmp_path: Path) -> None:
    files = history(made)
    cases = {
        "missing": ({file: data for file, data in files.items() if file.first != 2}, "some are missing"),
        "headless": ({file: data for file, data in files.items() if file.first != 1}, "no snapshot"),
        "cut": (files | {max(files, key=lambda f: f.last): list(files.values())[-1][:-1]}, "ends too early"),
        "renamed": ({BackupFile(9, 1, 2): next(iter(files.values()))}, "has the transactions 1 to 1"),
        "empty": ({}, "has no file of a backup"),
    }
    for name, (wrong, text) in cases.items():
        put(tmp_path / name, wrong)
        answer = assemble(tmp_path / name)
        assert (answer["ok"], answer["code"]) == (False, "backup_damaged"), name
        assert text in answer["message"], name


def test_a_database_larger_than_it_may_be_is_not_made(made: list[bytes], tmp_path: Path) -> None:
    put(tmp_path / "files", history(made))
    answer = assemble(tmp_path / "files", "--bytes", str(len(made[0]) - 1))
    assert (answer["ok"], answer["code"]) == (False, "disk_full")
    assert f"may have {len(made[0]) - 1}" in answer["message"]


def test_damage_inside_of_the_database_is_found(made: list[bytes], tmp_path: Path) -> None:
    """Files that are whole say nothing of what the node had in them."""
    size = int.from_bytes(made[0][16:18], "big")
    last = len(made[-1]) // size
    torn = made[-1][: (last - 1) * size] + b"\x0d" + bytes(size - 1)
    put(tmp_path / "files", history([torn]))
    answer = assemble(tmp_path / "files")
    assert answer.get("findings") or answer["code"] == "database_damaged"
    put(tmp_path / "others", history([b"SQLite format 3\0" + made[0][16:100] + bytes(len(made[0]) - 100)]))
    answer = assemble(tmp_path / "others")
    assert answer["ok"] is False


def test_files_are_merged_into_one_that_comes_to_the_same(made: list[bytes], tmp_path: Path) -> None:
    files = history(made)
    [snapshot, *later] = put(tmp_path / "files", files)
    data = snapshot.read_bytes()
    snapshot.unlink()
    assert assemble(tmp_path / "files", "--merge", ltx.name(2, 4), ltx.name(3, 4)) == {"ok": True}
    some, merged = sorted((tmp_path / "files" / "merged").iterdir(), reverse=True)
    assert (some.name, merged.name) == (ltx.name(3, 4), ltx.name(2, 4))
    assert merged.stat().st_size < sum(path.stat().st_size for path in later)
    with some.open("rb") as file:
        assert ltx.read_header(file)[2:5] == (3, 4, BEGUN_MS + 4 * EVERY_MS)
    data_of_all = merged.read_bytes()
    put(tmp_path / "both", {BackupFile(9, 1, 1): data, BackupFile(1, 2, 4): data_of_all})
    assert assemble(tmp_path / "both")["ok"]
    assert (tmp_path / "both" / "skerry.db").read_bytes() == made[-1]


def test_files_with_a_gap_are_not_merged(made: list[bytes], tmp_path: Path) -> None:
    put(tmp_path / "files", {file: data for file, data in history(made).items() if file.first != 3})
    for name, text in {
        ltx.name(2, 4): "some are missing",
        ltx.name(1, 3): "what there is has the transactions 1 to 2",
        ltx.name(3, 3): "there is no file for it",
        "../skerry.db": "is no name of a file",
    }.items():
        answer = assemble(tmp_path / "files", "--merge", name)
        assert (answer["ok"], answer["code"]) == (False, "backup_damaged")
        assert text in answer["message"]
        shutil.rmtree(tmp_path / "files" / "merged")


def test_more_files_than_are_open_at_once_are_merged(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    made = states(tmp_path / "source", 230)
    put(tmp_path / "files", history(made))
    assert assemble(tmp_path / "files", "--merge", ltx.name(1, 230)) == {"ok": True}
    [merged] = (tmp_path / "files" / "merged").iterdir()
    put(tmp_path / "whole", {BackupFile(9, 1, 230): merged.read_bytes()})
    assert assemble(tmp_path / "whole")["transaction"] == 230
    assert (tmp_path / "whole" / "skerry.db").read_bytes() == made[-1]
