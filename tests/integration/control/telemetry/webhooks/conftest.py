"""A control whose webhooks are sent at once, and a receiver."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from control.telemetry.webhooks import webhook_messages, webhook_sender
from tests.support.clock import SetClock
from tests.support.replica import Replica, Site
from tests.support.webhook_receiver import Receiver, receiving
from tests.support.webhooks import LOOPBACK


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made and sent at once."""
    monkeypatch.setattr(webhook_sender, "PERIOD", 0.02)
    monkeypatch.setattr(webhook_sender, "TAKE_EVERY", 0.2)
    monkeypatch.setattr(webhook_messages, "FIRST_WAIT", timedelta())
    monkeypatch.setattr(webhook_messages, "GATHER", 0.02)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture
def clock() -> SetClock:
    return SetClock(time="run")


@pytest.fixture
async def replica(control_site: Site, clock: SetClock) -> AsyncIterator[Replica]:
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as found:
        yield found
