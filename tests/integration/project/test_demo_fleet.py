"""`just demo-fleet` in small: each release goes as it must, and nothing is left of it, also after Ctrl-C."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadlines import scaled
from tests.support.demo_runs import LIMIT, DemoRun


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoRun]:
    with DemoRun.of("scripts.demo_fleet", "--nodes", "9", log=tmp_path / "demo.log") as made:
        yield made


@pytest.mark.timeout(int(LIMIT * 8))
def test_each_release_goes_as_it_must(demo: DemoRun) -> None:
    demo.wait("everything has ended")
    assert demo.process.wait(scaled(60)) == 0, demo.output
    lines = demo.output.splitlines()
    assert re.search(r"2 +a change .* stopped in its rehearsal +0 of 12 +edge-2, row visits id=2", demo.output), lines
    assert re.search(r"3 +price@2.* stopped at step 1 of 2 +1 of 12 +p99 of price", demo.output), lines
    assert re.search(r"5 +price@3 +done +12 of 12 +control was killed \d+ times", demo.output), lines
    assert demo.gone()


def test_ctrl_c_ends_everything(demo: DemoRun) -> None:
    demo.wait("nodes join")
    assert len(demo.family) > 5
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(scaled(60)) == 130, demo.output
    assert "Traceback" not in demo.output
    assert demo.gone()
