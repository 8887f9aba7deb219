"""The artifact store: objects of one S3 bucket (SeaweedFS, MinIO, S3), through one client per process.

Requests are limited: those without a body to `artifacts_timeout`, those with a body to `artifacts_stall` without
progress. The life of a presigned URL and the size of an artifact are settings too: `presigned_life` and
`artifact_limit` in `control/settings.py`.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, BinaryIO, Literal

import aioboto3
from aiohttp import ClientError as HttpError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from control.problems import ProblemError
from control.settings import ControlSettings, is_loopback
from control.storage import owner_mark, store_errors
from control.storage.connection_quotas import Places
from control.storage.store_errors import DELETE, GET, LIST, PUT, Action, code_of

CACHED_URLS = 4096
UPLOADS = 16
"""Objects that are uploaded concurrently; further ones wait."""
DOWNLOADS = 32
"""Objects that are read concurrently, for nodes that get artifacts through control and for operators."""
UPLOADS_OF_ONE, DOWNLOADS_OF_ONE = 8, 4
"""Of these, at most for one caller. A node gets so many concurrently."""
OTHERS = 16
"""Connections for all other requests, so that they never wait for a body."""
CONNECT_TIMEOUT = 5.0
READ_BYTES = 256 * 1024
SMALL = 64 * 1024
"""Bytes of the largest object that is read whole; for a larger one, one more byte is read to show its size."""
BINARY = "application/octet-stream"
MISSING = {"404", "NoSuchKey", "NotFound"}
NO_BUCKET = {"NoSuchBucket"}
NO_CONDITIONS = {"501", "NotImplemented"}
CONDITION_FAILED = {"409", "412", "PreconditionFailed", "ConditionalRequestConflict"}

AFTER_BACKUPS = owner_mark.BACKUPS[:-1] + chr(ord("/") + 1)
"""Sorts behind all keys of backups."""

_KEY = re.compile(r"[0-9a-f]{64}/([0-9a-f-]{36})")

Fault = Literal["missing", "wrong_size", "wrong_bytes"]
"""What is wrong with an object: it isn't there, or its size or its sha256 differs."""

log = logging.getLogger("skerry.store")


class WriteConflict(Exception):
    """A conditional write found an object other than the one to replace."""


@dataclass(frozen=True)
class StoredObject:
    """An object in a listing."""

    key: str
    modified: datetime
    size: int


def object_key(sha256: str, artifact_id: str) -> str:
    """Return the key of an artifact's object in the bucket."""
    return f"{sha256}/{artifact_id}"


def _artifacts(page: Any) -> list[StoredObject]:
    """Return the objects on a page of a listing, except control's own and backups."""
    return [item for item in _listed(page) if not item.key.startswith((owner_mark.PREFIX, owner_mark.BACKUPS))]


def _listed(page: Any) -> list[StoredObject]:
    """Return the objects on a page of a listing."""
    return [StoredObject(item["Key"], item["LastModified"], item["Size"]) for item in page.get("Contents", ())]


def _end(page: Any) -> str | None:
    """Return the key after which the next page of artifacts begins: the last of this one, or all backups, of which
    there may be millions. None if it is the bucket's last page."""
    listed = page.get("Contents", ())
    if not listed or not page.get("IsTruncated"):
        return None
    last = str(listed[-1]["Key"])
    return AFTER_BACKUPS if last.startswith(owner_mark.BACKUPS) else last


def artifact_id_of(key: str) -> str:
    """Return the id of the row of an artifact's object, or '' for a key that isn't an artifact's."""
    match = _KEY.fullmatch(key)
    return match[1] if match else ""


@dataclass(frozen=True)
class SmallObject:
    """A small object: its bytes, and the tag that a conditional write compares."""

    data: bytes
    tag: str


class Store:
    """The bucket of artifacts.

    Raises, in every method: ProblemError store_unavailable, when the store can't be reached or makes no progress in
    time; store_refused, when it refuses control's key; bucket_missing; store_full.
    """

    def __init__(self, client: Any, signer: Any, bucket: str, settings: ControlSettings) -> None:
        self.bucket = bucket
        self.on_answer: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that each request without a body took."""
        self._client = client
        self._signer = signer
        self._through_control = settings.artifacts_delivery == "control"
        self._life = settings.presigned_life
        self._timeout = settings.artifacts_timeout
        self._stall = settings.artifacts_stall
        self._whole = settings.upload_timeout
        self._uploads = Places(UPLOADS, UPLOADS_OF_ONE)
        self._downloads = Places(DOWNLOADS, DOWNLOADS_OF_ONE)
        self._urls: OrderedDict[str, tuple[str, float]] = OrderedDict()

    async def put(self, key: str, file: BinaryIO) -> None:
        """Upload the contents of `file` from its start."""
        file.seek(0)
        # Waiting for a slot counts as no progress: an upload that waits behind stalled ones ends with them.
        async with self._progressing(file), self._uploads.one():
            # In one piece, so a crash leaves no parts behind; the file is read in threads during the upload.
            await self._client.put_object(Bucket=self.bucket, Key=key, Body=file, ContentType="application/wasm")

    async def put_new(self, key: str, file: BinaryIO, md5: str = "") -> None:
        """Upload the contents of `file` from its start as a backup's object, if there is none with this key.

        The store compares the MD5 of what comes with `md5` (in base64), if that is given. Raises: WriteConflict, when
        there is one.
        """
        file.seek(0)
        asked = {"Bucket": self.bucket, "Key": key, "Body": file, "ContentType": BINARY, "IfNoneMatch": "*"}
        if md5:
            asked["ContentMD5"] = md5
        async with self._progressing(file), self._uploads.one():
            try:
                await self._client.put_object(**asked)
            except ClientError as error:
                if code_of(error) in CONDITION_FAILED:
                    raise WriteConflict from error
                raise

    async def upload_url(self, key: str, seconds: int) -> str:
        """Return a URL at which an object can be put for some seconds, by a PUT with `If-None-Match: *` alone: the
        store refuses it without that header, and where there is an object already."""
        params = {"Bucket": self.bucket, "Key": key, "IfNoneMatch": "*"}
        url: str = await self._signer.generate_presigned_url("put_object", Params=params, ExpiresIn=seconds)
        return url

    async def download_url(self, key: str, seconds: int) -> str:
        """Return a URL at which an object can be read for some seconds."""
        params = {"Bucket": self.bucket, "Key": key}
        url: str = await self._signer.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds)
        return url

    async def beginning(self, key: str, count: int) -> bytes | None:
        """Return the first `count` bytes of an object, or fewer if it is smaller; None if there is none."""
        async with self._limited(GET.of(key)):
            try:
                answer = await self._client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes=0-{count - 1}")
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                if code_of(error) in ("InvalidRange", "416"):
                    return b""
                raise
            data = b""
            async with answer["Body"] as body:
                # A store that ignores the range isn't read to its end.
                while len(data) < count and (piece := await body.content.read(count - len(data))):
                    data += piece
            return data

    async def head(self, key: str) -> int | None:
        """Return the object's size, or None if there is none."""
        async with self._limited(GET):
            try:
                return int((await self._client.head_object(Bucket=self.bucket, Key=key))["ContentLength"])
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise
                return None

    async def tagged(self, key: str) -> tuple[int, str] | None:
        """Return the object's size and its tag, which most stores make of the MD5 of what was put in one piece; None if
        there is none."""
        async with self._limited(GET):
            try:
                answer = await self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise
                return None
            return int(answer["ContentLength"]), str(answer.get("ETag", ""))

    async def delete(self, key: str) -> None:
        """Delete an object; a missing one is no error."""
        self._urls.pop(artifact_id_of(key), None)
        async with self._limited(DELETE):
            try:
                await self._client.delete_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise

    async def location(self, sha256: str, artifact_id: str) -> str:
        """Return the URL at which a node gets an artifact: a path of control or a presigned one, as the settings say.

        A presigned URL is valid for at least half of `presigned_life`. Signing is slow, so URLs are reused until then.
        """
        if self._through_control:
            return f"/v1/artifacts/{sha256}"
        known = self._urls.get(artifact_id)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        return await self._sign(sha256, artifact_id)

    async def _sign(self, sha256: str, artifact_id: str) -> str:
        now = time.monotonic()
        params = {"Bucket": self.bucket, "Key": object_key(sha256, artifact_id)}
        url: str = await self._signer.generate_presigned_url("get_object", Params=params, ExpiresIn=self._life)
        self._urls[artifact_id] = url, now + self._life / 2
        self._urls.move_to_end(artifact_id)
        if len(self._urls) > CACHED_URLS:
            self._urls.popitem(last=False)
        return url

    async def open(self, key: str, range_header: str | None = None) -> tuple[dict[str, Any], AsyncGenerator[bytes]]:
        """Open an object: S3's answer (`ContentLength` and, for a part, `ContentRange`), and its bytes in pieces.

        Raises: ProblemError unknown_artifact, when there is no such object; invalid_parameter, when the range is
        outside of it.
        """
        pieces = self._pieces(key, {"Range": range_header} if range_header else {})
        try:
            answer: Any = await anext(pieces)
        except BaseException:
            await pieces.aclose()
            raise
        return answer, pieces

    async def read(self, key: str, most: int = SMALL) -> SmallObject | None:
        """Return a whole small object, or None if there is none. If it is larger than `most`, read one byte more."""
        async with self._limited(GET.of(key)):
            try:
                answer = await self._client.get_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise
                return None
            data = b""
            async with answer["Body"] as body:
                # A read returns what has arrived, which may be a part.
                while len(data) <= most and (piece := await body.content.read(most + 1 - len(data))):
                    data += piece
            return SmallObject(data, str(answer.get("ETag", "")))

    async def write(self, key: str, data: bytes, replaces: str | None) -> None:
        """Write a small object over the one with the tag `replaces`; with None, only if there is none.

        Raises: WriteConflict, when a different object exists.
        """
        condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}
        asked = {"Bucket": self.bucket, "Key": key, "Body": data, "ContentType": "application/json"}
        async with self._limited(PUT.of(key)):
            try:
                await self._client.put_object(**asked, **condition)
            except ClientError as error:
                if code_of(error) in CONDITION_FAILED | MISSING:
                    raise WriteConflict from error
                if code_of(error) not in NO_CONDITIONS:
                    raise
                # A store without conditional writes: the last writer wins, and the others notice when they check again.
                await self._client.put_object(**asked)

    async def objects(self) -> AsyncIterator[list[StoredObject]]:
        """Yield all objects except control's own and backups, a page at a time."""
        after: str | None = ""
        while after is not None:
            page, after = await self.page(after)
            yield page

    async def page(self, after: str) -> tuple[list[StoredObject], str | None]:
        """Return a page of all objects except control's own and backups, by key, after the key `after`; and the key
        after which the next page begins, None if it is the bucket's last.
        """
        async with self._limited(LIST):
            page = await self._client.list_objects_v2(Bucket=self.bucket, StartAfter=after)
        end = _end(page)
        # A store that begins again would never end.
        return _artifacts(page), end if end is None or end > after else None

    async def under(self, prefix: str, after: str = "") -> AsyncIterator[list[StoredObject]]:
        """Yield all objects whose keys begin with `prefix` and come after `after`, by key, a page at a time."""
        more = True
        while more:
            async with self._limited(LIST):
                page = await self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, StartAfter=after)
            listed = _listed(page)
            yield listed
            more = bool(page.get("IsTruncated")) and bool(listed) and listed[-1].key > after
            after = listed[-1].key if listed else after

    async def keys(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """Return a page of the keys that begin with `prefix`, sorted, after `after`; and whether there are more."""
        async with self._limited(LIST):
            page = await self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, StartAfter=after)
        return [str(item["Key"]) for item in page.get("Contents", ())], bool(page.get("IsTruncated"))

    async def keeps_versions(self) -> bool:
        """Return whether the bucket keeps deleted objects; False if the key may not ask."""
        async with self._limited(GET):
            try:
                return bool((await self._client.get_bucket_versioning(Bucket=self.bucket)).get("Status") == "Enabled")
            except ClientError as error:
                if code_of(error) in NO_BUCKET:
                    raise
                return False

    async def _pieces(self, key: str, asked: dict[str, str]) -> AsyncGenerator[Any]:
        """Yield the answer to a GET, then the pieces of its body."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._stall):
                    await stack.enter_async_context(self._downloads.one())
            except TimeoutError:
                raise store_errors.no_progress(GET, self._stall) from None
            async with self._limited(GET):
                try:
                    answer: dict[str, Any] = await self._client.get_object(Bucket=self.bucket, Key=key, **asked)
                except ClientError as error:
                    if code_of(error) in MISSING:
                        text = f"artifact {key.partition('/')[0]} isn't in the store any more; upload it again"
                        raise ProblemError("unknown_artifact", text) from error
                    if code_of(error) in ("InvalidRange", "416"):
                        raise ProblemError(
                            "invalid_parameter", "the range is outside of the artifact", field="Range"
                        ) from error
                    raise
            async with answer["Body"] as body:
                yield answer
                while True:
                    with self._failures(GET):
                        async with asyncio.timeout(self._stall):
                            piece = await body.content.read(READ_BYTES)
                    if not piece:
                        return
                    yield piece

    @asynccontextmanager
    async def _limited(self, action: Action) -> AsyncIterator[None]:
        """Limit a request without a body to `artifacts_timeout`."""
        began = time.monotonic()
        try:
            with self._failures(action):
                async with asyncio.timeout(self._timeout) as limit:
                    yield
        except ProblemError as error:
            if limit.expired():
                raise store_errors.no_progress(action, self._timeout) from error
            raise
        finally:
            self.on_answer(time.monotonic() - began)

    @asynccontextmanager
    async def _progressing(self, file: BinaryIO) -> AsyncIterator[None]:
        """Limit an upload of `file`: end it when nothing has been read from the file for `artifacts_stall`."""
        loop = asyncio.get_running_loop()

        async def extend(limit: asyncio.Timeout) -> None:
            seen = 0
            while True:
                await asyncio.sleep(self._stall / 20)
                position = file.tell()
                if position != seen:
                    seen = position
                    limit.reschedule(loop.time() + self._stall)

        try:
            with self._failures(PUT):
                async with asyncio.timeout(self._whole) as whole, asyncio.timeout(self._stall) as limit:
                    extending = asyncio.create_task(extend(limit))
                    try:
                        yield
                    finally:
                        extending.cancel()
        except ProblemError as error:
            if limit.expired() or whole.expired():
                seconds = self._stall if limit.expired() else self._whole
                raise store_errors.no_progress(PUT, seconds) from error
            raise

    @contextmanager
    def _failures(self, action: Action) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, ResponseParserError, HttpError, OSError) as error:
            problem = store_errors.problem(error, action, self.bucket)
            log.debug("%s failed: %s: %s", action.words, type(error).__name__, error)
            raise problem from error


@asynccontextmanager
async def connect(settings: ControlSettings) -> AsyncIterator[Store]:
    """Make a client for the store in the settings. It sends no request yet: polls are answered without the store."""
    address = settings.store_address()

    def client(endpoint: str) -> Any:
        host = endpoint.partition("://")[2].rpartition(":")[0].strip("[]")
        return _session().client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=address.key,
            aws_secret_access_key=address.secret,
            region_name=settings.artifacts_region,
            # Over http nothing is verified, so CAs, which take 4 ms, aren't read.
            verify=False if endpoint.lower().startswith("http:") else None,
            config=Config(
                # botocore would build a description of itself and this machine for each request, a tenth of its time.
                user_agent="skerry",
                signature_version="s3v4",
                # botocore would hash payloads in the loop. They go over TLS or loopback, and every reader of an
                # artifact checks its sha256.
                s3={"addressing_style": "path", "payload_signing_enabled": False},
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=settings.artifacts_stall,
                retries={"mode": "standard", "max_attempts": 2},
                max_pool_connections=UPLOADS + DOWNLOADS + OTHERS,
                # No proxy to our own host.
                **({"proxies": {}} if is_loopback(host) else {}),
                # Not every store supports S3's newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async with client(address.endpoint) as ours:
        if not settings.artifacts_public_url:
            yield Store(ours, ours, address.bucket, settings)
            return
        # The signature covers the host, so sign for the name by which nodes reach the store.
        async with client(settings.artifacts_public_url.rstrip("/")) as signer:
            yield Store(ours, signer, address.bucket, settings)


@cache
def _session() -> aioboto3.Session:
    """Return the session that all clients share: it holds the description of S3, a megabyte of JSON."""
    return aioboto3.Session()


async def fault(store: Store, key: str, size: int, sha256: str | None) -> Fault | None:
    """Return what is wrong with the object `key`, which must have `size` bytes; None if it is unchanged since its push.

    Read its bytes, a piece at a time, unless `sha256` is None. Raises: ProblemError, as `Store` does.
    """
    found = await store.head(key)
    if found is None:
        return "missing"
    if found != size:
        return "wrong_size"
    if sha256 is None:
        return None
    digest = hashlib.sha256()
    try:
        _answer, pieces = await store.open(key)
    except ProblemError as error:
        if error.code != "unknown_artifact":
            raise
        return "missing"
    async with aclosing(pieces):
        async for piece in pieces:
            digest.update(piece)
    return None if digest.hexdigest() == sha256 else "wrong_bytes"
