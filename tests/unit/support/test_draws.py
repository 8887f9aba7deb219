"""What properties draw, run after run."""

import functools
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings

from tests.support.environment import without_settings

PROGRAM = """
from tests.support import draws
draws.settle()
from hypothesis import given, settings, strategies as st
{}
@given(st.integers() | st.text() | st.floats())
@settings(max_examples=100)
def test(value):
    print(ascii(value))
test()
"""


@functools.cache
def drawn(first: str = "", **environment: str) -> Sequence[str]:
    """What a run draws that begins with the statement `first`."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first)],
        env=without_settings() | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = found.stdout.splitlines()
    assert len(lines) >= 100
    return lines


def test_a_run_draws_the_same_whatever_is_imported() -> None:
    assert drawn(PYTHONHASHSEED="1") == drawn("import edge_runtime.guests.wasi", PYTHONHASHSEED="2")


def test_a_seed_draws_something_else_and_the_same_each_time() -> None:
    seeded = drawn(SKERRY_TEST_SEED="1")
    assert seeded == drawn("import edge_runtime.guests.wasi", SKERRY_TEST_SEED="1")
    assert seeded != drawn(PYTHONHASHSEED="1")
    assert seeded != drawn(SKERRY_TEST_SEED="2")


@pytest.mark.skipif("SKERRY_TEST_SEED" in os.environ, reason="it draws what the seed gives")
def test_these_tests_draw_the_same_each_time_at_any_speed() -> None:
    assert settings.default is not None
    assert settings.default.derandomize
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check
