"""What several of these files use: a replica, and the states of a database that has gone through some transactions."""

from collections.abc import AsyncIterator

import pytest

from tests.support.backup_files import states
from tests.support.replica import Replica, Site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Six states, one a transaction."""
    return states(tmp_path_factory.mktemp("source"), 6)


@pytest.fixture
async def replica(control_site: Site) -> AsyncIterator[Replica]:
    async with control_site.running() as replica:
        yield replica
