"""What the tests of control share: copies of the metadata, and a replica that is lent."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from control.local.pki import Pki
from tests.support.backups import Backups
from tests.support.control import Control
from tests.support.lent import Lender
from tests.support.services import ServerUrls, drop_database


@pytest.fixture
async def backups(services: ServerUrls, database_url: str) -> AsyncIterator[Backups]:
    """Of the test's database; its copies are dropped after the test."""
    services.past_proxy(database_url, "copies of a database are PostgreSQL's")
    found = Backups(services.postgresql_url, database_url)
    yield found
    for url in found.copies:
        await drop_database(services.metadata_url, url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lender(services: ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lender]:
    """Has the replica that the module's tests are lent; a module may have one with more in it."""
    made = Lender(services, pki, tmp_path_factory.mktemp("spool"))
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def lent(lender: Lender) -> AsyncIterator[Control]:
    """As `control`, for tests that only ask it, and run in the module's loop: none may leave anything behind."""
    async with lender.lent() as control:
        yield control
