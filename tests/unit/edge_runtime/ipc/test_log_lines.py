"""A log of which some is missing says how much, where it was cut."""

import os

import pytest

from edge_runtime.ipc import log_lines, progress_page


@pytest.mark.parametrize(
    ("kept", "lost", "log"),
    [
        (b"whole", 0, b"whole"),
        (b"a line\n", 7, b"a line\n<4>[skerry: 7 bytes of this log were left out here]\n"),
        (b"a li", 9, b"a li\n<4>[skerry: 9 bytes of this log were left out here]\n"),
        (b"", 2**64 - 1, b"<4>[skerry: 18446744073709551615 bytes of this log were left out here]\n"),
    ],
)
def test_the_line_is_where_the_log_was_cut(kept: bytes, lost: int, log: bytes) -> None:
    assert log_lines.with_loss(kept, lost) == log
    assert len(log_lines.with_loss(kept, 10**19)) <= len(kept) + log_lines.LONGEST
    text, line = log_lines.without_loss(log)
    assert (text.rstrip(b"\n"), bool(line)) == (kept.rstrip(b"\n"), lost > 0)
    assert text + line == log


@pytest.mark.parametrize("number", [5, 2000])
def test_the_log_of_a_dead_call_says_what_came_before_it_and_after_it(number: int) -> None:
    descriptor = progress_page.create()
    words = progress_page.open_page(descriptor)
    os.close(descriptor)
    mark, page = progress_page.Mark(words, 3), progress_page.LogPage(words, 3)
    mark.start(1)
    written = b"".join(b"line %05d\n" % n for n in range(number))
    page.add(written)
    text = progress_page.log(words, 3)
    if len(written) > progress_page.LOG_BYTES:
        first, _, rest = text.partition(b"\n")
        assert written.endswith(rest)
        assert len(rest) > progress_page.LOG_BYTES - 20
        assert first + b"\n" == log_lines.LINE % (len(written) - len(rest))
    else:
        assert text == written
    page.lose(30)
    page.lose(4)
    assert progress_page.log(words, 3) == text + log_lines.LINE % 34
    # Of the call before there is nothing.
    mark.start(2)
    assert progress_page.log(words, 3) == b""
