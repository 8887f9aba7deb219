"""What the tests of control share: copies of the metadata."""

from collections.abc import AsyncIterator

import pytest

from tests.support.backups import Backups
from tests.support.services import ServerUrls, drop_database


@pytest.fixture
async def backups(services: ServerUrls, database_url: str) -> AsyncIterator[Backups]:
    """Of the test's database; its copies are dropped after the test."""
    services.past_proxy(database_url, "copies of a database are PostgreSQL's")
    found = Backups(services.postgresql_url, database_url)
    yield found
    for url in found.copies:
        await drop_database(services.metadata_url, url)
