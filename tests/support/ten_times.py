"""A plugin of pytest's: each test runs ten times, up to the first failure, with all fixtures but the session's anew."""

import pytest
from _pytest.runner import runtestprotocol

from tests.support.flaked import TIMES


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Function) -> bool:
    """Run the test; what other tests would find after it is taken down each time."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for _ in range(TIMES):
        item._initrequest()
        if any(report.failed for report in runtestprotocol(item, nextitem=item.session)):
            break
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
