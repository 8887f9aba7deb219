"""What the tests of nodes share: the real control, of which a node is a user, and a node that has joined it;
the fault points of nodes."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from control.local.pki import Pki
from tests.support.agents import Control, Edge, edge, joined, running_control
from tests.support.moved_clock import MovedClock, moved_clock
from tests.support.programs import Faults


@pytest.fixture
async def control(database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    async with running_control(database_url, bucket_url, pki) as running:
        yield running


@pytest.fixture
async def node(control: Control, tmp_path: Path) -> AsyncIterator[Edge]:
    await joined(control, tmp_path)
    async with edge(tmp_path) as running:
        yield running


@pytest.fixture
def clock() -> Iterator[MovedClock]:
    """The clock of fronts in this process, to be moved. Where a test has `node`, it names this before."""
    with moved_clock() as moved:
        yield moved


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """The fault points of the processes of nodes that are started from here on."""
    made = Faults(tmp_path / "faults")
    monkeypatch.setenv("SKERRY_FAULTS", str(made.folder))
    return made
