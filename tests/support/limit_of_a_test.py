"""A plugin of pytest's: the time that pytest-timeout gives a whole test is a deadline, too."""

import signal
import time
from types import FrameType
from typing import Any

import pytest
import pytest_timeout

from tests.support import deadlines


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Have the time of a whole test scaled, too; looked at again when it seems to be over."""
    began = time.monotonic()
    pytest_timeout.pytest_timeout_set_timer(item, settings)
    fail = signal.getsignal(signal.SIGALRM)

    def over(number: int, frame: FrameType | None) -> None:
        left = began + deadlines.scaled(settings.timeout) - time.monotonic()
        if left > 0:
            signal.setitimer(signal.ITIMER_REAL, left)
        elif callable(fail):
            fail(number, frame)

    if settings.method == "signal":
        signal.signal(signal.SIGALRM, over)
    return True
