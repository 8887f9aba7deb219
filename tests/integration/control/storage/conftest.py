"""What the tests of the metadata share: a connection to their database itself."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.support.services import ServerUrls


@pytest.fixture
async def connection(services: ServerUrls, database_url: str) -> AsyncIterator[Any]:
    """To the database, past the proxy that plays CockroachDB: rows are put back by what PostgreSQL alone has."""
    made = await asyncpg.connect(services.past_proxy(database_url, "rows are put back by what PostgreSQL alone has"))
    yield made
    await made.close()
