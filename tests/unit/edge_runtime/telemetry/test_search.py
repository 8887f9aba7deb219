"""Lines are found again in a ring: the same ones as by reading all of it, whatever is in its files."""

import logging
import tempfile
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.telemetry import records, ring, search
from edge_runtime.telemetry.ring import Ring
from edge_runtime.telemetry.search import Follower, LineFilter
from tests.support.deadlines import scaled
from tests.support.draws import examples

BASE = 1_764_000_000.0
FUNCTIONS = ("orders", "stock", 'a"b', "ü")
CALLS = ("c1", "c12", "c2")

fields = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(records.KINDS),
        "level": st.sampled_from(records.LEVELS),
        "function": st.sampled_from(FUNCTIONS),
        "call": st.sampled_from(CALLS),
        "message": st.sampled_from(("x", '"level":"error"', '{"t":"2026"}', "é" * 40, "a\nb", '"call":"c1"', "")),
    }
)
steps = st.one_of(st.floats(0, 3), st.sampled_from((0.0, 40.0, -4.0, -30.0, 1000.0)))
"""Seconds from a line to the next: clocks stand, jump and go back."""
foreign = st.sampled_from((b"\n", b"{\n", b"\0\0\0\n", b"[1]\n", b"null\n", b'{"t":5}\n', b'{"t":"20'))
wanted = st.builds(
    LineFilter,
    since=st.none() | st.floats(-50, 200).map(lambda t: BASE + t),
    until=st.none() | st.floats(-50, 200).map(lambda t: BASE + t),
    kinds=st.sampled_from(((), *((kind,) for kind in records.KINDS), ("log", "node"))),
    function=st.sampled_from(("", *FUNCTIONS)),
    level=st.sampled_from(("", *records.LEVELS)),
    calls=st.sampled_from(
        ((), *((call,) for call in CALLS), ("c",), CALLS[:2], ("c2", *map(str, range(search.NEEDLES))))
    ),
)


def line(at: float, **more: str) -> bytes:
    return records.encode({"t": records.time_text(at), **more})


def naive(folder: Path, asked: LineFilter) -> list[bytes]:
    """Every line that fits, by reading them all."""
    found = []
    for number in ring.numbers(folder):
        for one in ring.path_of(folder, number).read_bytes().split(b"\n")[:-1]:
            try:
                record = orjson.loads(one)
                moment = record["t"]
                levels = records.LEVELS[records.LEVELS.index(asked.level or "debug") :]
                fits = isinstance(moment, str) and (
                    (asked.since is None or moment >= records.time_text(asked.since))
                    and (asked.until is None or moment < records.time_text(asked.until))
                    and (not asked.level or record["level"] in levels)
                    and asked.function in ("", record.get("function"))
                    and (not asked.kinds or record.get("kind") in asked.kinds)
                    and (not asked.calls or record.get("call") in asked.calls)
                )
            except (ValueError, TypeError, KeyError):
                continue
            if fits:
                found.append(one)
    return found


def write(folder: Path, batches: list[list[bytes]], limit: int = 1 << 20) -> None:
    files = ring.RingFiles(folder, limit, 1e9)
    for batch in batches:
        files.write(batch)
    files.close()


@settings(max_examples=examples(75))
@given(
    lines=st.lists(st.tuples(steps, fields), max_size=60),
    cuts=st.lists(st.integers(1, 20), max_size=6),
    limit=st.sampled_from((16 * 200, 16 * 1000, 1 << 20)),
    garbage=st.lists(st.tuples(st.integers(0, 10), foreign), max_size=3),
    asked=wanted,
    most=st.integers(1, 80),
)
def test_a_search_finds_what_reading_everything_finds(lines, cuts, limit, garbage, asked, most) -> None:
    at, made = BASE, []
    for step, one in lines:
        at += step
        made.append(line(at, **one))
    batches = []
    for size in [*cuts, len(made)]:
        batches.append(made[:size])
        made = made[size:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, batches, limit)
        numbers = ring.numbers(folder)
        for which, what in garbage:
            if numbers:
                # Behind a file's lines: what is in between lines can't have come by a kill.
                with ring.path_of(folder, numbers[which % len(numbers)]).open("ab") as file:
                    file.write(what)
        expected = naive(folder, asked)
        found = search.search(folder, asked, most)
        assert found.lines == expected[-most:]
        assert found.more == (len(expected) > most)


@pytest.mark.parametrize("number", range(0, 80, 7))
def test_lines_out_of_their_order_are_found_by_time(tmp_path, number) -> None:
    """Calls end in another order than they began: a line may be some seconds older than the one before."""
    write(tmp_path, [[line(BASE + n + (4.9 if n % 9 == 0 else 0)) for n in range(80)]])
    for asked in (LineFilter(until=BASE + number), LineFilter(since=BASE + number)):
        assert search.search(tmp_path, asked).lines == naive(tmp_path, asked)


def test_a_folder_that_is_not_there_has_no_lines(tmp_path) -> None:
    assert search.search(tmp_path / "none", LineFilter()).lines == []
    assert Follower(tmp_path / "none").lines(LineFilter()) == []


def test_a_cut_file_is_searched_as_far_as_it_goes(tmp_path) -> None:
    write(tmp_path, [[line(BASE + n, call=f"c{n}") for n in range(100)]])
    path = ring.path_of(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:1000])
    found = search.search(tmp_path, LineFilter()).lines
    assert found == path.read_bytes().split(b"\n")[:-1]
    assert 10 < len(found) < 100


def test_a_follower_reads_what_comes_once(tmp_path) -> None:
    write(tmp_path, [[line(BASE)]])
    follower = Follower(tmp_path)
    assert follower.lines(LineFilter()) == []
    write(tmp_path, [[line(BASE + 1, level="info"), line(BASE + 2, level="error")]])
    assert [orjson.loads(x)["level"] for x in follower.lines(LineFilter(level="warning"))] == ["error"]
    assert follower.lines(LineFilter()) == []
    # Half a line is taken once it has its end.
    path = ring.path_of(tmp_path, 1)
    half = line(BASE + 3)
    with path.open("ab") as file:
        file.write(half[:10])
    assert follower.lines(LineFilter()) == []
    with path.open("ab") as file:
        file.write(half[10:])
    assert follower.lines(LineFilter()) == [half[:-1]]
    # Another file, and one that was cut.
    ring.path_of(tmp_path, 2).write_bytes(line(BASE + 4))
    assert follower.lines(LineFilter()) == [line(BASE + 4)[:-1]]
    ring.path_of(tmp_path, 2).write_bytes(b"")
    assert follower.lines(LineFilter()) == []
    ring.path_of(tmp_path, 2).write_bytes(line(BASE + 5))
    assert follower.lines(LineFilter()) == [line(BASE + 5)[:-1]]


def test_a_follower_misses_nothing_while_the_ring_goes_round(tmp_path) -> None:
    kept = Ring(tmp_path, 16 * 4_000, 1e9)
    kept.start()
    follower, seen, written = Follower(tmp_path), [], kept.mark()
    try:
        for n in range(3000):
            kept.put(line(BASE + n / 1000, call=f"c{n}"))
            if n % 300 == 0:
                seen += follower.lines(LineFilter())
                # However slow the thread that writes is: no more may come at once than the ring has room for.
                deadline = time.monotonic() + scaled(60)
                while not written():
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                written = kept.mark()
    finally:
        kept.close()
    seen += follower.lines(LineFilter())
    assert [orjson.loads(x)["call"] for x in seen] == [f"c{n}" for n in range(3000)]
    assert kept.lost == 0
    assert ring.numbers(tmp_path)[0] > 1, "it has gone round"


@pytest.mark.parametrize("at", [0.0, 1.9999, -1.5, 1764000000.999999, 4102444800.0])
def test_times_are_in_order_as_texts(at) -> None:
    text = records.time_text(at)
    assert len(text) == 24
    assert 0 <= at - records.seconds_of(text) < 0.0011
    assert records.time_text(at - 1) < text < records.time_text(at + 1)


def test_half_a_surrogate_pair_is_a_line_too() -> None:
    made = records.of_node("error", "no such file: a\udcff", "n1", BASE)
    assert orjson.loads(made)["message"] == "no such file: a\\udcff"


def test_nothing_is_logged_by_a_search(tmp_path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    search.search(tmp_path, LineFilter())
    assert [record for record in caplog.records if record.name.startswith("skerry")] == []
