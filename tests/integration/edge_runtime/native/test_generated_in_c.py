"""Generated modules that end by themselves, run by the C library and by Python: each call's status, header lines, body,
log, or fault are the same. `SKERRY_TEST_MODULES` is how many modules are made; half of them are of such a kind."""

import os
from pathlib import Path

import pytest

from edge_runtime.native import library
from edge_runtime.oneshot import check
from tests.support.both_ways import both_ways
from tests.support.generated import generated

pytestmark = [
    pytest.mark.never_retry,
    pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}"),
    pytest.mark.timeout(1800),
]
COUNT = int(os.environ.get("SKERRY_TEST_MODULES", "100"))
SEED = os.environ.get("SKERRY_TEST_SEED", "skerry")
AT_ONCE = 40
"""Modules that a worker has, each in a memory of its own."""


def test_generated_modules_end_alike(tmp_path: Path) -> None:
    chosen = []
    for module in generated(COUNT, SEED):
        if module.kind not in ("ending", "tame", "direct"):
            continue
        try:
            abi = check.check_module(module.wasm)["abi"]
        except check.ModuleRefused:
            continue
        if abi in ("direct", "wagi"):
            chosen.append((module.name, (module.wasm, {"abi": abi, "memory_pages": 32, "log_bytes": 5000})))
    assert len(chosen) > COUNT / 4
    different, by_python, calls = {}, 0, 0
    for at in range(0, len(chosen), AT_ONCE):
        functions = dict(chosen[at : at + AT_ONCE])
        with both_ways(tmp_path, functions, eager=True) as run:
            for name in functions:
                for body in (b"hello", b"hello", b"", b"x" * 3000):
                    ours, theirs = run.said(name, body)
                    calls += 1
                    if ours != theirs:
                        different[name] = (body, ours, theirs)
            by_python += sum(run.by_python.values())
    assert different == {}
    # Those that call `skerry.sql`, or fail to be instantiated, are run by Python each time.
    assert by_python < calls * 0.7
