"""What the tests of the metadata share: a connection to their database itself."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.support.services import ServerUrls


@pytest.fixture
async def connection(services: ServerUrls, database_url: str) -> AsyncIterator[Any]:
    """To the database, past the proxy that plays CockroachDB: rows are put back by what PostgreSQL alone has."""
    if services.embedded is None:
        pytest.skip("rows are put back by what PostgreSQL alone has")
    url = urlunsplit(urlsplit(services.embedded.metadata_url)._replace(path=urlsplit(database_url).path))
    made = await asyncpg.connect(url)
    yield made
    await made.close()
