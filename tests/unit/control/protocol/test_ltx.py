"""LTX files: what is written is what is read, files are merged as if they were applied, and nothing broken passes."""

import io
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import ltx

PAGE = 512
LITESTREAM = Path(sys.executable).with_name("litestream")


def made(first: int, last: int, pages: int, contents: dict[int, bytes]) -> bytes:
    file = io.BytesIO()
    size = ltx.write(file, ltx.Header(PAGE, pages, first, last, 1000 + last), sorted(contents.items()))
    assert size == len(file.getvalue())
    return file.getvalue()


def reader(data: bytes) -> ltx.Reader:
    return ltx.Reader(io.BytesIO(data))


def applied(files: list[bytes]) -> bytes:
    target = io.BytesIO()
    for file in files:
        ltx.apply(reader(file), target)
    return target.getvalue()


contents = st.dictionaries(
    st.integers(1, 12), st.binary(min_size=1, max_size=3).map(lambda part: (part * PAGE)[:PAGE]), max_size=8
)


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """A snapshot, and files that follow it: each has the pages that are new, and some others."""
    pages, files, last = draw(st.integers(1, 12)), [], 0
    held = {number: bytes([number]) * PAGE for number in range(1, pages + 1)}
    files.append(made(1, 3, pages, held))
    last = 3
    for _ in range(draw(st.integers(0, 4))):
        after = draw(st.integers(1, 12))
        wrote = {number: data for number, data in draw(contents).items() if number <= after}
        wrote |= {number: bytes([100 + number]) * PAGE for number in range(pages + 1, after + 1)}
        first, last = last + 1, last + draw(st.integers(1, 3))
        files.append(made(first, last, after, wrote))
        pages = after
    return files


@given(histories())
def test_merged_files_are_the_files_one_after_the_other(files: list[bytes]) -> None:
    target = io.BytesIO()
    assert ltx.merge([reader(file) for file in files], target) == len(target.getvalue())
    assert applied([target.getvalue()]) == applied(files)
    header = reader(target.getvalue()).header
    assert (header.first, header.last) == (1, reader(files[-1]).header.last)
    assert [number for number, _ in reader(target.getvalue()).pages()] == list(range(1, header.pages + 1))
    if len(files) > 2:
        later = io.BytesIO()
        ltx.merge([reader(file) for file in files[1:]], later)
        assert applied([files[0], later.getvalue()]) == applied(files)
        # Put before it was merged with those after it, as by a node whose upload had no answer.
        assert applied([*files[:2], later.getvalue()]) == applied(files)
        again = io.BytesIO()
        ltx.merge([reader(file) for file in (*files[:2], later.getvalue())], again)
        assert again.getvalue() == target.getvalue()


@given(histories(), st.data())
def test_no_broken_file_passes(files: list[bytes], data: st.DataObject) -> None:
    file = bytearray(files[-1])
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        file = file[: data.draw(st.integers(0, len(file) - 1))]
    with pytest.raises(ltx.LtxError):
        list(reader(bytes(file)).pages())
    with pytest.raises(ltx.LtxError):
        list(reader(files[-1] + b"\0").pages())


def test_files_that_dont_follow_each_other_arent_merged() -> None:
    one = made(1, 3, 1, {1: bytes(PAGE)})
    for first, last, text in ((5, 5, "some are missing"), (2, 3, "isn't newer"), (2, 2, "isn't newer")):
        with pytest.raises(ltx.LtxError, match=text):
            ltx.merge([reader(one), reader(made(first, last, 1, {1: bytes(PAGE)}))], io.BytesIO())


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("0000000000000001-00000000000000ff.ltx", (1, 255)),
        ("0000000000000002-0000000000000001.ltx", None),
        ("0000000000000000-0000000000000001.ltx", None),
        ("0000000000000001-00000000000000FF.ltx", None),
        ("000000000000001-00000000000000ff.ltx", None),
        ("0000000000000001-00000000000000ff.tmp", None),
        ("+000000000000001-00000000000000ff.ltx", None),
        ("ffffffffffffffff-ffffffffffffffff.ltx", None),
    ],
)
def test_names(text: str, span: tuple[int, int] | None) -> None:
    assert ltx.transactions(text) == span


def test_litestream_restores_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "made.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, text TEXT)")
    for last, count in enumerate((10, 2000, 3), start=1):
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO items (text) VALUES (?)", [(f"row {n}" * 20,) for n in range(count)])
        connection.execute("COMMIT")
        data = path.read_bytes()
        size = int.from_bytes(data[16:18], "big")
        pages = len(data) // size
        level = 9 if last == 1 else 0
        first = 1 if level else last
        name = tmp_path / "replica" / "ltx" / str(level) / ltx.name(first, last)
        name.parent.mkdir(parents=True, exist_ok=True)
        with name.open("wb") as file:
            whole = ((n + 1, data[n * size : (n + 1) * size]) for n in range(pages))
            ltx.write(file, ltx.Header(size, pages, first, last, 1_700_000_000_000 + last), whole)
    connection.close()
    restored = tmp_path / "restored.db"
    subprocess.run([LITESTREAM, "restore", "-o", restored, f"file://{tmp_path / 'replica'}"], check=True)
    assert restored.read_bytes() == path.read_bytes()
