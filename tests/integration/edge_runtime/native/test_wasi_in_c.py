"""WASI in the C library and in Python: the same calls, one after the other, with any arguments, answer the same, leave
the same in the memory, and write the same. `SKERRY_TEST_GUESTS` is how many sequences are tried."""

import os
from pathlib import Path

import pytest

from edge_runtime.native import library
from tests.support.both_ways import both_ways
from tests.support.wasi_program import program, sequence

pytestmark = [
    pytest.mark.never_retry,
    pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}"),
    pytest.mark.timeout(900),
]
COUNT = int(os.environ.get("SKERRY_TEST_GUESTS", "200"))
SEED = os.environ.get("SKERRY_TEST_SEED", "skerry")
LIMITS = {"response_limit": 3000, "log_bytes": 2500, "memory_pages": 8}


def test_any_calls_of_wasi_answer_alike(tmp_path: Path) -> None:
    functions = {"own": (program(), LIMITS), "foreign": (program(), LIMITS)}
    different = {}
    with both_ways(tmp_path, functions) as run:
        for number in range(COUNT):
            own, body = sequence(number, SEED)
            ours, theirs = run.said("own" if own else "foreign", body, query=b"a&b=%d" % number)
            if ours != theirs:
                different[number] = (ours, theirs)
    assert not different, (len(different), next(iter(different.items())))
    assert run.by_python["own"] < COUNT / 10, "they were run by the library"
