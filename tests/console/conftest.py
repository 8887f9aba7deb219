"""What the modules of this folder have alike."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from control.local.pki import Pki
from tests.support import services as servers
from tests.support.replica import Site, prepare, wait_longer
from tests.support.watched import Watched, watching

TIMEOUT = 1800
"""Seconds for a test: more than all that it waits for may take, each by a deadline of its own that says what was so."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_site(
    services: servers.ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """As `control_site`, one for all tests of a module."""
    database_url = await services.fresh_database()
    bucket_url = await servers.fresh_bucket(services.artifacts_url)
    with pytest.MonkeyPatch.context() as patch:
        # As `long_waits`, which is for one test.
        wait_longer(patch)
        yield await prepare(database_url, bucket_url, pki, tmp_path_factory.mktemp("spool"))
    await services.give_back(database_url)
    await servers.drop_bucket(bucket_url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """One for all tests of a module: each leaves it as it was."""
    async with watching(tmp_path_factory.mktemp("watched")) as found:
        yield found
