"""Each test gets a metadata database and a bucket that are as new, on the session's servers."""

import asyncpg
import pytest

from control.local.seaweedfs import s3_client
from tests.support.services import LIKE_COCKROACHDB, drop_bucket, fresh_bucket, is_cockroachdb

seen: list[str] = []


@pytest.mark.parametrize("turn", [1, 2])
async def test_a_database_is_fresh_and_serializable(database_url, turn):
    assert database_url not in seen[-1:]
    seen.append(database_url)
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SHOW default_transaction_isolation") == "serializable"
    # Whoever had this database before left nothing of that name.
    await connection.execute("CREATE TABLE only_here (id INT PRIMARY KEY)")
    await connection.close()


async def test_the_proxy_is_before_the_database_where_it_is_asked_for(database_url, empty_database_url, served_url):
    for url in (database_url, empty_database_url, served_url):
        connection = await asyncpg.connect(url)
        told = hasattr(connection.get_settings(), "crdb_version")
        assert told == await is_cockroachdb(connection)
        assert told or not LIKE_COCKROACHDB
        await connection.close()


async def test_a_bucket_is_given_again_emptied(services):
    given = []
    for _ in range(4):
        url = await fresh_bucket(services.artifacts_url)
        given.append(url)
        async with s3_client(url) as client:
            bucket = url.rpartition("/")[2]
            assert "Contents" not in await client.list_objects_v2(Bucket=bucket)
            assert "Uploads" not in await client.list_multipart_uploads(Bucket=bucket)
            await client.put_object(Bucket=bucket, Key="left/behind", Body=b"x")
            await client.put_object(Bucket=bucket, Key="left &<b>+%41 é", Body=b"x")
            await client.create_multipart_upload(Bucket=bucket, Key="half &<é>")
        await drop_bucket(url)
    assert len(set(given)) < len(given)
