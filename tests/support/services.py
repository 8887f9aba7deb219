"""The servers that the tests run against: ours, or those that the environment names.

With SKERRY_TEST_COCKROACHDB=1 a proxy stands before our PostgreSQL that makes it behave as CockroachDB: all that the
tests connect goes through it, and every process that they start.
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import botocore.session
import pytest
from botocore.config import Config

from control.clock import SystemClock
from control.local import embedded
from control.storage import database, migrations
from tests.support import cockroachdb, emptied_bucket, kept_initdb, shared_services, spare_databases
from tests.support.cockroachdb_session import ERRORS_PARAMETER

TEMPLATE = "migrated"
"""The database that those of the tests are copies of."""
PREFIX = "skerry-test-"
MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30
"""Bytes that must be free in `MEMORY`; the servers of one test process take a tenth of that."""
LEFT_AFTER = 3600.0
"""Seconds after which files of servers that don't run any more are removed from `MEMORY`."""
POSTGRESQL = {
    # No waiting for a disk, and little of its log kept: a kill loses nothing that was written.
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    # It looks at each database once a minute, and what it counts changes how statements are carried out.
    "autovacuum": "off",
    # For the tests of all worker processes of a run.
    "max_connections": "600",
}
"""PostgreSQL's settings for the tests."""
LIKE_COCKROACHDB = os.environ.get("SKERRY_TEST_COCKROACHDB") == "1"
ERRORS = 0.03
"""The share of COMMITs and of writing statements that CockroachDB's errors come at, where a test asks for them."""


@dataclass(frozen=True)
class ServerUrls:
    """Where the metadata database and the artifact store are."""

    metadata_url: str
    artifacts_url: str
    postgresql_url: str = ""
    """The database past the proxy that stands for CockroachDB; '' where the environment named the servers."""
    admin: str = ""
    """The token of the admin in each database of `fresh_database`; '' where that is empty."""
    look: str = ""
    rows: str = ""
    """`spare_databases.Template` of those databases."""

    async def fresh_database(self) -> str:
        """A database of its own: a copy of one that was migrated and has an admin, empty where there is none."""
        if not self.postgresql_url:
            return await fresh_database(self.metadata_url)
        # CockroachDB can't copy a database, so this goes past the proxy.
        like = spare_databases.Template(self.look, self.rows)
        copied, unfit = await spare_databases.take(self.postgresql_url, like)
        for left in unfit:
            with contextlib.suppress(asyncpg.InvalidCatalogNameError):
                await drop_database(self.postgresql_url, left)
        copied = copied or await fresh_database(self.postgresql_url, TEMPLATE)
        url = _of(self.metadata_url, copied)
        _admins[_name(url)] = (url, self.admin)
        return url

    async def give_back(self, url: str) -> None:
        """Have a database of `fresh_database` be another test's, or remove it; the test's processes have ended."""
        if self.postgresql_url:
            spare_databases.give_back(self.postgresql_url, _of(self.postgresql_url, url))
        else:
            await drop_database(self.metadata_url, url)

    def past_proxy(self, url: str, why: str) -> str:
        """The URL of the database of `url` past the proxy that stands for CockroachDB; `why` a test needs that.

        The test is skipped where the environment named the servers.
        """
        if not self.postgresql_url:
            pytest.skip(why)
        return _of(self.postgresql_url, url)


@dataclass(frozen=True, kw_only=True)
class OwnServers(ServerUrls):
    """Servers that whoever has started them may kill, and start again."""

    processes: embedded.LocalServices


_admins: dict[str, tuple[str, str]] = {}
"""By the name of a database of `ServerUrls.fresh_database`: its URL, and the token of the admin that is in it."""


async def admin_of(url: str) -> str:
    """The token of the first admin in the database of `url`, which is migrated and gets one where it is empty.

    One that is reached by another way than its own URL is migrated as what that way makes of it, such as CockroachDB.
    """
    own_url, admin = _admins.get(_name(url), ("", ""))
    return admin if url == own_url else await _migrate(url) or admin


def _name(url: str) -> str:
    return urlsplit(url).path.strip("/")


def _of(server: str, url: str) -> str:
    """The database of `url` by way of `server`."""
    return urlunsplit(urlsplit(server)._replace(path=urlsplit(url).path))


@contextmanager
def used_services(socket: str) -> Iterator[ServerUrls]:
    """What SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL name, else the servers that all workers of this run share,
    which are asked for at `socket`, else, where that is '', own ones."""
    metadata, artifacts = os.environ.get("SKERRY_METADATA_URL"), os.environ.get("SKERRY_ARTIFACTS_URL")
    if metadata and artifacts:
        try:
            yield ServerUrls(metadata, artifacts)
        finally:
            _drop_spares()
    elif metadata or artifacts:
        raise RuntimeError("set both SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL, or neither")
    elif socket:
        shared = ServerUrls(**shared_services.ask(socket))
        with like_cockroachdb(shared.postgresql_url) as url:
            try:
                yield replace(shared, metadata_url=url)
            finally:
                spare_databases.forget(shared.postgresql_url)
    else:
        with own_services() as own:
            yield own


@contextmanager
def own_services() -> Iterator[OwnServers]:
    """PostgreSQL and SeaweedFS in a folder of their own, which end with the block, or with this process."""
    with home_folder() as home, asyncio.Runner() as runner:
        context = embedded.services(home, POSTGRESQL)
        services = runner.run(context.__aenter__())
        try:
            runner.run(_quicken_passwords(services.metadata_url))
            with like_cockroachdb(services.metadata_url) as url:
                admin, like = runner.run(_make_template(url, services.metadata_url))
                urls = ServerUrls(url, services.artifacts_url, services.metadata_url, admin, like.look, like.rows)
                yield OwnServers(**vars(urls), processes=services)
        finally:
            _spares.pop(services.artifacts_url.rpartition("/")[0], None)
            spare_databases.forget(services.metadata_url)
            runner.run(context.__aexit__(None, None, None))


@contextmanager
def home_folder(*, filled: bool = True) -> Iterator[Path]:
    """A path for the home of servers, in memory where there is room; what is there at the end is removed.

    Where it is `filled`, PostgreSQL's files are in it from the beginning.
    """
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=memory_folder()))
    # So that the user that PostgreSQL runs as, where we are root, can reach it.
    folder.chmod(0o711)
    try:
        if filled:
            kept_initdb.fill(folder / "home")
        yield folder / "home"
    finally:
        remove_home(folder / "home")
        shutil.rmtree(folder, ignore_errors=True)


def memory_folder() -> Path | None:
    """Return a folder in memory with room for the servers' files; None where there is none, for the usual one on disk.

    Each test's database is a copy of 400 files: a disk may take a third of a second for that. What killed runs left
    there is removed first, since it takes memory. Nodes in it must be able to load the code that they compile.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return None
    for left in MEMORY.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_AFTER:
                # The servers hold this lock while they live.
                with open(left / "home" / "services.lock") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
    return MEMORY


@contextmanager
def like_cockroachdb(url: str) -> Iterator[str]:
    """Yield the URL to use for the database at `url`: through the proxy where the tests are to use it, else `url`."""
    if not LIKE_COCKROACHDB:
        yield url
        return
    with cockroachdb.process(url) as through:
        yield through


def with_errors(url: str) -> str:
    """Return `url` such that its connections meet CockroachDB's errors, where the proxy stands before the database."""
    return f"{url}?{ERRORS_PARAMETER}={ERRORS}" if LIKE_COCKROACHDB else url


async def is_cockroachdb(connection: Any) -> bool:
    """Whether the server is CockroachDB, or behaves as it does."""
    return "CockroachDB" in await connection.fetchval("SELECT version()")


def remove_home(home: Path) -> None:
    """Remove a home, and the data that lies elsewhere because PostgreSQL's user couldn't reach it."""
    data = home / "metadata" / "data"
    if data.is_symlink():
        shutil.rmtree(data.resolve().parent, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


async def _make_template(url: str, postgresql_url: str) -> tuple[str, spare_databases.Template]:
    """Migrate a database that others are copied from, and make an admin in it, whose token is returned."""
    made = await embedded.create_database(url, TEMPLATE)
    admin = await _migrate(made)
    assert admin is not None
    connection = await asyncpg.connect(_of(postgresql_url, made))
    try:
        # As in any metadata that are minutes old: a replica has put the admin on an access list in the bucket.
        await connection.execute("DELETE FROM access_changes")
        return admin, await spare_databases.template(connection)
    finally:
        await connection.close()


async def _quicken_passwords(url: str) -> None:
    """Have a client derive the key of its password once, not 4096 times: 1 ms for each connection of a test."""
    parts = urlsplit(url)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"SET scram_iterations = 1; ALTER ROLE {parts.username} PASSWORD '{parts.password}'")
    finally:
        await connection.close()


async def _migrate(url: str) -> str | None:
    """Migrate a database, and make an admin where there is none, whose token is returned."""
    db = await database.connect(url, connections=1)
    try:
        await migrations.migrate(db, SystemClock())
        return await migrations.make_admin(db, SystemClock())
    finally:
        await db.close()


async def fresh_database(url: str, template: str = "") -> str:
    """A database beside that of `url`: empty, or a copy of the one called `template`."""
    name = f"test_{uuid4().hex}"
    if not template:
        return await embedded.create_database(url, name)
    connection = await asyncpg.connect(url)
    try:
        # Not by way of the WAL, which is as much again.
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    finally:
        await connection.close()
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def drop_database(maintenance_url: str, url: str) -> None:
    """Remove a database, whoever is still connected to it."""
    name = url.rpartition("/")[2].partition("?")[0]
    assert re.fullmatch(r"test_[0-9a-f]{32}", name)
    connection = await asyncpg.connect(maintenance_url)
    try:
        how = "CASCADE" if await is_cockroachdb(connection) else "WITH (FORCE)"
        await connection.execute(f"DROP DATABASE {name} {how}")
    finally:
        await connection.close()


async def fresh_bucket(url: str) -> str:
    """Return the URL of an empty bucket of the artifact store of `url`: another test's, emptied, or a new one.

    SeaweedFS takes 0.2 s for the first object of a new one.
    """
    store = url.rpartition("/")[0]
    spares = _spares.setdefault(store, deque())
    # The last one rests: a process that was killed may have sent something that the store has yet to write.
    if len(spares) < 2:
        return await asyncio.to_thread(_make_bucket, store)
    spare = spares.popleft()
    await asyncio.to_thread(emptied_bucket.empty, spare)
    return spare


def _make_bucket(store: str) -> str:
    name = f"test-{uuid4().hex}"
    client = _store(store)
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="first", Body=b"first")
    client.delete_object(Bucket=name, Key="first")
    return f"{store}/{name}"


async def drop_bucket(url: str, *, again: bool = True) -> None:
    """Give a bucket of `fresh_bucket` back, with everything in it; without `again` no other test gets it."""
    store, _, name = url.rpartition("/")
    assert re.fullmatch(r"test-[0-9a-f]{32}", name)
    if again:
        _spares.setdefault(store, deque()).append(url)
    else:
        await asyncio.to_thread(_drop_bucket, url)


def _drop_bucket(url: str) -> None:
    emptied_bucket.empty(url)
    store, _, name = url.rpartition("/")
    _store(store).delete_bucket(Bucket=name)


_spares: dict[str, deque[str]] = {}
"""By the store's URL: buckets that tests have had, the last at the end."""


def _drop_spares() -> None:
    """Remove the buckets from a store that isn't ours."""
    for urls in _spares.values():
        for url in urls:
            _drop_bucket(url)
    _spares.clear()


@functools.cache
def _store(url: str) -> Any:
    """A client of the store at ``http://KEY:SECRET@HOST:PORT``, for any thread. One is made in 50 ms, so it is kept."""
    parts = urlsplit(url)
    return botocore.session.get_session().create_client(
        "s3",
        aws_access_key_id=unquote(parts.username or ""),
        aws_secret_access_key=unquote(parts.password or ""),
        endpoint_url=f"{parts.scheme}://{parts.hostname}:{parts.port}",
        region_name="us-east-1",
        config=Config(
            proxies={},
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=10,
            retries={"total_max_attempts": 3},
        ),
    )
