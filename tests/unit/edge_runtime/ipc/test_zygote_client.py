"""How a child ended, in words."""

import signal

import pytest

from edge_runtime.ipc.zygote_client import how


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "ended with the zygote"),
        (3 << 8, "ended with status 3"),
        (signal.SIGKILL, "was ended by signal 9 (SIGKILL)"),
        # One of the real-time signals has no name, and others that only the C library has.
        (40, "was ended by signal 40"),
        (32, "was ended by signal 32"),
    ],
)
def test_an_end_is_told_in_words(status: int | None, words: str) -> None:
    assert how(status) == words
