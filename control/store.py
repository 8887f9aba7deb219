"""The artifact store: objects of one S3 bucket (MinIO, SeaweedFS, S3) through one client for the process's life."""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, BinaryIO

import aioboto3
from aiohttp import ClientError as HttpError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from control.problems import ProblemError
from control.settings import Settings, is_loopback

CACHED_URLS = 4096
MISSING = {"404", "NoSuchKey", "NotFound"}
NO_BUCKET = {"404", "NoSuchBucket"}

log = logging.getLogger("skerry.store")


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    modified: datetime


class Store:
    """The bucket of artifacts. Every method raises `ProblemError` store_unavailable where it can't be reached."""

    def __init__(self, client: Any, signer: Any, bucket: str, life: int) -> None:
        self._client = client
        self._signer = signer
        self._bucket = bucket
        self._life = life
        self._urls: OrderedDict[str, tuple[str, float]] = OrderedDict()

    async def ready(self) -> None:
        """The bucket is there, made if it was missing."""
        with _failures():
            try:
                await self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _code(error) not in NO_BUCKET:
                    raise
                await self._make_bucket()

    async def put(self, key: str, file: BinaryIO) -> None:
        """Upload what `file` holds, from its start."""
        with _failures():
            try:
                await self._put(key, file)
            except ClientError as error:
                if _code(error) not in NO_BUCKET:
                    raise
                await self._make_bucket()
                await self._put(key, file)

    async def head(self, key: str) -> int | None:
        """The object's size, or None if there is none."""
        with _failures():
            try:
                return int((await self._client.head_object(Bucket=self._bucket, Key=key))["ContentLength"])
            except ClientError as error:
                if _code(error) not in MISSING:
                    raise
                return None

    async def delete(self, key: str) -> None:
        """Delete an object; one that isn't there is no error."""
        self._urls.pop(key, None)
        with _failures():
            try:
                await self._client.delete_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if _code(error) not in MISSING | NO_BUCKET:
                    raise

    async def url(self, key: str) -> str:
        """A presigned URL to GET the object, good for half of the set life at least. Signing is slow: it is kept."""
        now = time.monotonic()
        known = self._urls.get(key)
        if known is not None and known[1] > now:
            return known[0]
        url: str = await self._signer.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=self._life
        )
        self._urls[key] = url, now + self._life / 2
        self._urls.move_to_end(key)
        if len(self._urls) > CACHED_URLS:
            self._urls.popitem(last=False)
        return url

    async def open(self, key: str, range_header: str | None = None) -> dict[str, Any]:
        """An object to read: S3's answer, with `Body` (a context manager with ``iter_chunks``), `ContentLength` and,
        for a part, `ContentRange`.

        Raises `ProblemError` unknown_artifact where it isn't there, invalid_parameter for a range outside of it.
        """
        asked = {"Range": range_header} if range_header else {}
        with _failures():
            try:
                answer: dict[str, Any] = await self._client.get_object(Bucket=self._bucket, Key=key, **asked)
            except ClientError as error:
                if _code(error) in MISSING:
                    raise ProblemError("unknown_artifact", "its bytes aren't in the store any more") from error
                if _code(error) in ("InvalidRange", "416"):
                    raise ProblemError(
                        "invalid_parameter", "the range is outside of the artifact", field="Range"
                    ) from error
                raise
            return answer

    async def objects(self) -> AsyncIterator[list[StoredObject]]:
        """All objects, a page at a time."""
        with _failures():
            async for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket):
                yield [StoredObject(item["Key"], item["LastModified"]) for item in page.get("Contents", ())]

    async def _put(self, key: str, file: BinaryIO) -> None:
        file.seek(0)
        # In one piece, which leaves no parts behind after a kill; the file is read in threads as it goes.
        await self._client.put_object(Bucket=self._bucket, Key=key, Body=file, ContentType="application/wasm")

    async def _make_bucket(self) -> None:
        try:
            await self._client.create_bucket(Bucket=self._bucket)
            log.info("made the bucket %s", self._bucket)
        except ClientError as error:
            if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Store]:
    """The store of these settings. It needn't be there yet: polls are answered without it."""
    address = settings.store_address()

    def client(endpoint: str) -> Any:
        host = endpoint.partition("://")[2].rpartition(":")[0].strip("[]")
        return _session().client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=address.key,
            aws_secret_access_key=address.secret,
            region_name=settings.artifacts_region,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "max_attempts": 2},
                max_pool_connections=20,
                # No proxy between us and ourselves.
                **({"proxies": {}} if is_loopback(host) else {}),
                # Not every store knows S3's newer checksums; the payload is signed, or goes over TLS.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async with client(address.endpoint) as ours:
        if not settings.artifacts_public_url:
            yield Store(ours, ours, address.bucket, settings.presigned_life)
            return
        # The signature covers the host: signed for the name under which nodes reach the store.
        async with client(settings.artifacts_public_url.rstrip("/")) as signer:
            yield Store(ours, signer, address.bucket, settings.presigned_life)


@cache
def _session() -> aioboto3.Session:
    """It keeps the description of S3, a megabyte of JSON, that each client is made from."""
    return aioboto3.Session()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError, HttpError, OSError) as error:
        log.warning("the artifact store failed: %s: %s", type(error).__name__, error)
        raise ProblemError(
            "store_unavailable", f"the artifact store failed ({type(error).__name__}); try again"
        ) from error
