"""The servers that the tests run against: ours, or those that the environment names.

With SKERRY_TEST_COCKROACHDB=1 a proxy stands before our PostgreSQL that makes it behave as CockroachDB: all that the
tests connect goes through it, and every process that they start.
"""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from control.clock import SystemClock
from control.local import embedded
from control.local.seaweedfs import create_bucket, s3_client
from control.storage import database, migrations
from tests.support import cockroachdb
from tests.support.cockroachdb_session import ERRORS_PARAMETER

TEMPLATE = "migrated"
LIKE_COCKROACHDB = os.environ.get("SKERRY_TEST_COCKROACHDB") == "1"
ERRORS = 0.03
"""The share of COMMITs and of writing statements that CockroachDB's errors come at, where a test asks for them."""


@dataclass(frozen=True)
class ServerUrls:
    """Where the metadata database and the artifact store are; `embedded` is None where the environment named them."""

    metadata_url: str
    artifacts_url: str
    embedded: embedded.LocalServices | None

    async def fresh_database(self) -> str:
        """A database of its own, without an operator: a copy of one that was migrated, empty where there is none."""
        if self.embedded is None:
            return await fresh_database(self.metadata_url)
        # CockroachDB can't copy a database, so this goes past the proxy.
        copied = await fresh_database(self.embedded.metadata_url, TEMPLATE)
        return urlunsplit(urlsplit(self.metadata_url)._replace(path=urlsplit(copied).path))


@contextmanager
def running_services() -> Iterator[ServerUrls]:
    """PostgreSQL and SeaweedFS in a folder of their own, or what SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL name."""
    metadata, artifacts = os.environ.get("SKERRY_METADATA_URL"), os.environ.get("SKERRY_ARTIFACTS_URL")
    if metadata and artifacts:
        yield ServerUrls(metadata, artifacts, None)
        return
    if metadata or artifacts:
        raise RuntimeError("set both SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL, or neither")
    folder = Path(tempfile.mkdtemp(prefix="skerry-test-"))
    # So that the user that PostgreSQL runs as, where we are root, can reach it.
    folder.chmod(0o711)
    try:
        with asyncio.Runner() as runner:
            context = embedded.services(folder / "home")
            services = runner.run(context.__aenter__())
            try:
                runner.run(_hurry(services.metadata_url))
                with like_cockroachdb(services.metadata_url) as url:
                    runner.run(_make_template(url))
                    yield ServerUrls(url, services.artifacts_url, services)
            finally:
                runner.run(context.__aexit__(None, None, None))
    finally:
        remove_home(folder / "home")
        shutil.rmtree(folder, ignore_errors=True)


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


async def _hurry(url: str) -> None:
    """Have the server not wait for the disk: a kill loses nothing of what it wrote, only a power failure would."""
    connection = await asyncpg.connect(url)
    try:
        for setting in ("fsync", "full_page_writes"):
            await connection.execute(f"ALTER SYSTEM SET {setting} = off")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


async def _make_template(url: str) -> None:
    """Migrate a database that others are copied from."""
    db = await database.connect(await embedded.create_database(url, TEMPLATE), connections=1)
    try:
        await migrations.migrate(db, SystemClock())
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
    """An empty bucket beside that of `url`."""
    name = f"test-{uuid4().hex}"
    async with s3_client(url) as client:
        await create_bucket(client, name)
    return f"{url.rpartition('/')[0]}/{name}"


async def drop_bucket(url: str) -> None:
    """Remove a bucket with everything in it."""
    name = url.rpartition("/")[2]
    assert re.fullmatch(r"test-[0-9a-f]{32}", name)
    async with s3_client(url) as client:
        async for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for found in page.get("Contents", []):
                await client.delete_object(Bucket=name, Key=found["Key"])
        async for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=name):
            for found in page.get("Uploads", []):
                await client.abort_multipart_upload(Bucket=name, Key=found["Key"], UploadId=found["UploadId"])
        await client.delete_bucket(Bucket=name)
