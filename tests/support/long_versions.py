"""A plugin of `just faults`: which tests of the chosen files are run, and what each of pytest's workers gets.

Of the unit tests only those with examples have a long version. Workers get single tests, not files, so that the
thousands of seeds of one file aren't one worker's; a file whose tests share a fixture of its own stays together.
"""

from collections import Counter
from collections.abc import Generator
from functools import cache
from typing import Any, Final

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.long_files import ROOT, file_of

UNIT: Final = "tests/unit/"


@cache
def together(file: str) -> bool:
    """Whether tests of the file share what is made once for all of them."""
    return 'scope="module"' in (ROOT / file).read_text("utf-8")


class Shares(LoadScopeScheduling):
    """What workers get, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return file_of(nodeid) if together(file_of(nodeid)) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    """Have the workers get tests so, whatever `--dist` says."""
    return Shares(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> Generator[None]:
    """Choose the tests, and have files with few tests, which are long ones, come first."""
    chosen, others = [], []
    for item in items:
        property_or_long = hypothesis.is_hypothesis_test(item.obj) or not item.nodeid.startswith(UNIT)
        (chosen if property_or_long else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen
    tests = Counter(file_of(item.nodeid) for item in items)
    # Other hooks have an order of their own.
    yield
    items.sort(key=lambda item: (not together(file_of(item.nodeid)), tests[file_of(item.nodeid)]))
