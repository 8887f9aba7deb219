"""What the tests of two versions side by side share: the version before, and metadata that it has made."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from control.local.pki import Pki
from control.settings import ControlSettings
from tests.support import previous
from tests.support.previous import Previous
from tests.support.replica import Site
from tests.upgrades.versions import migrated


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Previous]:
    """The version before."""
    why = previous.missing()
    if why:
        pytest.skip(why)
    return previous.build(tmp_path_factory.mktemp("previous"))


@pytest.fixture
async def site(
    before: Previous, long_waits: None, empty_database_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> Site:
    """Metadata that the version before has made, with an admin, and an empty bucket."""
    _, admin = await migrated(before.python, empty_database_url)
    settings = ControlSettings(
        metadata_url=empty_database_url,
        artifacts_url=bucket_url,
        tls_cert=pki.certificate,
        tls_key=pki.key,
        ca_cert=pki.ca,
        spool=tmp_path,
    )
    return Site(settings, pki.ca, admin)
