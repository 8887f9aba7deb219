"""Fixtures that all tests share: real servers, once for the session, and fresh things in them for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from control.pki import Pki, ensure
from tests.support import replica
from tests.support import services as servers
from tests.support.control import Control, running


@pytest.fixture(scope="session")
def services() -> Iterator[servers.ServerUrls]:
    """The metadata database and the artifact store, started once for the whole session.

    A test that kills one of them uses `services.embedded` and starts it again.
    """
    with servers.running_services() as running:
        yield running


@pytest.fixture
async def database_url(services: servers.ServerUrls) -> AsyncIterator[str]:
    """A metadata database of the test's own, without an operator."""
    url = await services.fresh_database()
    yield url
    await servers.drop_database(services.metadata_url, url)


@pytest.fixture
async def empty_database_url(services: servers.ServerUrls) -> AsyncIterator[str]:
    """One in which there is nothing at all."""
    url = await servers.fresh_database(services.metadata_url)
    yield url
    await servers.drop_database(services.metadata_url, url)


@pytest.fixture
async def bucket_url(services: servers.ServerUrls) -> AsyncIterator[str]:
    """A fresh, empty bucket of the artifact store."""
    url = await servers.fresh_bucket(services.artifacts_url)
    yield url
    await servers.drop_bucket(url)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority and a server certificate for localhost and 127.0.0.1."""
    folder: Path = tmp_path_factory.mktemp("pki")
    return ensure(folder)


@pytest.fixture
async def control(database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    """One replica of control, over TLS, with an admin and a clock that the test can move on."""
    async with running(database_url, bucket_url, pki) as found:
        yield found


@pytest.fixture
async def control_site(database_url: str, bucket_url: str, pki: Pki, tmp_path: Path) -> replica.Site:
    """A migrated database with an admin, an empty bucket: `async with control_site.running()` is a replica on them."""
    return await replica.prepare(database_url, bucket_url, pki, tmp_path)
