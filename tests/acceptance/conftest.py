"""What the tests of the requirements share: control on real servers over TLS, its clock, and a look past its API."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from control.local.seaweedfs import s3_client
from control.storage import owner_mark
from tests.support import repeating
from tests.support.clock import SetClock
from tests.support.programs import Faults
from tests.support.replica import Advance, Replica, Site
from tests.support.services import LIKE_COCKROACHDB, with_errors


@pytest.fixture
def served_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the proxy stands before the database, control meets CockroachDB's errors at COMMIT and in statements.

    Who asks control is told so, and asks again.
    """
    monkeypatch.setattr(repeating, "REPEATS", LIKE_COCKROACHDB)
    return with_errors(database_url)


@pytest.fixture
def clock() -> SetClock:
    """Control's clock: it stands until the test moves it."""
    return SetClock()


@pytest.fixture
async def replica(control_site: Site, clock: SetClock) -> AsyncIterator[Replica]:
    """Control by the clock that the test sets; see `advance` for what it does by itself."""
    async with control_site.running(clock=clock) as running:
        yield running


@pytest.fixture
def advance(replica: Replica, clock: SetClock) -> Advance:
    """Move the clock by so many seconds, as control does each second or two: heartbeats of before are written, and the
    monitor looks by the time of after."""

    async def move(seconds: float) -> None:
        await repeating.saved(replica.services.heartbeats.flush)
        clock.advance(seconds)
        await repeating.saved(lambda: replica.services.monitor().look(clock.time))

    return move


@pytest.fixture
async def live(control_site: Site) -> AsyncIterator[Replica]:
    """Control by the system's clock, for nodes that have theirs."""
    async with control_site.running() as running:
        yield running


@pytest.fixture
async def metadata(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The metadata database itself: what control says is one thing, what is stored another."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def stored(bucket_url: str) -> Callable[[], Any]:
    """`await stored()` is what the artifact store has: bytes by key."""

    async def look() -> dict[str, bytes]:
        bucket = bucket_url.rpartition("/")[2]
        async with s3_client(bucket_url) as client:
            listed = (await client.list_objects_v2(Bucket=bucket)).get("Contents", [])
            found = {}
            for item in listed:
                if item["Key"].startswith(owner_mark.PREFIX):
                    continue
                body = (await client.get_object(Bucket=bucket, Key=item["Key"]))["Body"]
                async with body as stream:
                    found[item["Key"]] = await stream.read()
            return found

    return look


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Fault points for the programs that the test starts."""
    return Faults(tmp_path / "faults")
