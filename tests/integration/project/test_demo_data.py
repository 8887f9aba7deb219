"""`just demo-data`: no order is lost that must not be, and nothing is left of it, also after Ctrl-C."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadlines import scaled
from tests.support.demo_runs import LIMIT, DemoRun


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoRun]:
    with DemoRun.of("scripts.demo_data", log=tmp_path / "demo.log") as made:
        yield made


@pytest.mark.timeout(int(LIMIT * 8))
def test_no_order_is_lost_that_must_not_be(demo: DemoRun) -> None:
    demo.wait("everything has ended")
    assert demo.process.wait(scaled(60)) == 0, demo.output
    table = demo.output.rpartition("COUNTED")[2]
    counted = {what: int(number) for what, number in re.findall(r"^ *(\S.*?) +(\d+)$", table, re.MULTILINE)}
    assert counted["of those missing afterwards"] == counted["missing after the undo"] == 0
    assert counted["with a wrong price on release 3"] > 0
    assert counted["with a wrong price after the undo"] == 0
    assert counted["taken on release 3, and undone with it"] > 0
    assert demo.gone()


def test_ctrl_c_ends_everything(demo: DemoRun) -> None:
    demo.wait("$ skerry schema add")
    assert len(demo.family) > 5
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(scaled(60)) == 130, demo.output
    assert "Traceback" not in demo.output
    assert demo.gone()
