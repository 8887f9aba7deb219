"""A `skerry up`, and a shell beside it."""

from collections.abc import Iterator

import pytest

from tests.support.up import Shell, Up, ready_up, shell


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One for all the tests of a module, which leave it usable for each other."""
    yield from ready_up()


@pytest.fixture
def skerry(up: Up, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return shell(up, monkeypatch, capsys)
