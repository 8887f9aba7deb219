"""What the tests of the metadata share: a connection to their database itself, a schema to read."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.services import ServerUrls


@pytest.fixture
async def connection(services: ServerUrls, database_url: str) -> AsyncIterator[Any]:
    """To the database, past the proxy that plays CockroachDB: rows are put back by what PostgreSQL alone has."""
    made = await asyncpg.connect(services.past_proxy(database_url, "rows are put back by what PostgreSQL alone has"))
    yield made
    await made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def schema_url(services: ServerUrls) -> AsyncIterator[str]:
    """A migrated database of the module, whose tests read what tables there are and change nothing."""
    url = await services.fresh_database()
    yield url
    await services.give_back(url)
