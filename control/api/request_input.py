"""A request's input: bodies that are read and parsed within limits, and the values in paths, queries and headers."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
import orjson
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope

from control.clock import Clock
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.manifest import unfit
from control.settings import ControlSettings
from control.storage.connection_quotas import ASKS

T = TypeVar("T")

SMALL_BODY = 256 * 1024
"""Bytes of an operator's JSON body."""
INVENTORY_BODY = 1536 * 1024
"""Bytes of a body with a node's inventory, which may have some thousand entries."""
SQL_BODY = 8 * 1024 * 1024
"""Bytes of a body with a schema change, which is one long text."""
BIG_BODY = 64 * 1024
"""Bytes of the largest body that is parsed in the loop; larger ones are parsed in a thread, beside other requests."""

MOST_BODIES = 64
"""The most bodies of one operator or node that arrive at once: until they are complete, they are in memory."""

_coming: Counter[str] = Counter()
"""Bodies arriving at this process, by sender (`ASKS`)."""
_AT = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")


@contextmanager
def coming() -> Iterator[None]:
    """Count an arriving body until the block ends.

    Raises: ProblemError too_many_acts, when its sender has too many.
    """
    who = ASKS.get()
    if who and _coming[who] >= MOST_BODIES:
        text = f"{MOST_BODIES} requests of the same sender are under way whose bodies aren't whole yet"
        raise ProblemError("too_many_acts", text, retry_after=1)
    _coming[who] += 1
    try:
        yield
    finally:
        _coming[who] -= 1
        if not _coming[who]:
            del _coming[who]


def check_length(scope: Scope, limit: int) -> None:
    """Check that by its header the body has at most `limit` bytes. Raises: ProblemError body_too_large."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)


async def read_body(settings: ControlSettings, clock: Clock, scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a whole body of at most `limit` bytes. Raises: ProblemError, when it is larger, too slow, or ends early."""
    limit = min(limit, settings.body_limit)
    check_length(scope, limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with clock.timeout(settings.body_timeout):
            with coming():
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ProblemError("body_incomplete", "the connection was closed within the body")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
    except TimeoutError:
        raise ProblemError("body_timeout", f"the body didn't arrive within {settings.body_timeout:.0f} s") from None


def decode(raw: bytes, type: type[T]) -> T:
    """Parse JSON as `type`. Raises: ProblemError, with the field that is wrong."""
    try:
        # In one step: fields of a large body that `type` doesn't have are skipped without making objects.
        value = msgspec.json.decode(raw, type=type)
    except msgspec.ValidationError as error:
        if len(raw) <= SMALL_BODY / 2:
            _check_syntax(raw)
        raise _invalid("invalid_body", error, type) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("malformed_json", f"the body isn't JSON: {error}") from None
    if b"\\u0000" in raw:
        _refuse_nul(orjson.loads(raw), "")
    return value


def _check_syntax(raw: bytes) -> None:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ProblemError("malformed_json", f"the body isn't JSON: {error}") from None


def convert(value: object, type: type[T], code: str, *, strict: bool = True) -> T:
    """Convert `value` to `type`. Raises: ProblemError of this code, with the field that is wrong."""
    try:
        return msgspec.convert(value, type, strict=strict)
    except msgspec.ValidationError as error:
        raise _invalid(code, error, type) from None


def _invalid(code: str, error: msgspec.ValidationError, type: Any) -> ProblemError:
    text = str(error)
    where = _AT.search(text)
    named = _FIELD.search(text)
    path = [part for part in (where[1] if where else "", named[1] if named else "") if part]
    return ProblemError(code, unfit(error, type), field=".".join(path))


class PathTypes(msgspec.Struct):
    """The types of the parameters in paths, by name."""

    name: wire.Name
    sha256: wire.Sha256
    version: wire.Number
    number: wire.Number
    group: wire.Name
    node: str
    """A node's id or name."""
    id: wire.Uuid
    rehearsal: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}\.[1-9][0-9]{0,8}$(?!\n)")]
    """The id of a rehearsal: its release's and the attempt."""
    lineage: wire.Lineage
    level: Annotated[str, msgspec.Meta(pattern=r"^[0-9]$(?!\n)")]
    """The level of a file of a backup."""
    file: Annotated[str, msgspec.Meta(max_length=64)]
    """The name of a file of a backup, without its level."""


@cache
def path_types() -> dict[str, Any]:
    """Return `PathTypes` as a dict."""
    return {f.name: f.type for f in msgspec.structs.fields(PathTypes)}


def path_value(name: str, text: str) -> Any:
    if name == "node" and not (wire.NAME.fullmatch(text)):
        raise ProblemError("invalid_parameter", f"{text!r} is neither a node's name nor its id", field="node")
    try:
        return convert(text, path_types()[name], "invalid_parameter", strict=False)
    except ProblemError as error:
        raise ProblemError("invalid_parameter", error.detail, field=name) from None


def query_value(type: Any, scope: Scope) -> Any:
    given = QueryParams(scope["query_string"])
    names = {f.encode_name for f in msgspec.structs.fields(type)} if type else set()
    for name, text in given.multi_items():
        if name not in names:
            raise ProblemError("invalid_parameter", f"this call has no parameter {name!r}", field=name[:100])
        if "\x00" in text or len(given.getlist(name)) > 1:
            raise ProblemError("invalid_parameter", "it must be given once, without NUL", field=name)
    return convert(dict(given), type, "invalid_parameter", strict=False) if type else None


def idempotency_key(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            if not re.fullmatch(rb"[\x21-\x7e]{1,200}", value):
                raise ProblemError(
                    "invalid_parameter", "a key has 1 to 200 visible ASCII characters", field="Idempotency-Key"
                )
            return str(value, "ascii")
    return ""


def check_media_type(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-type" and value.partition(b";")[0].strip().lower() not in (b"application/json", b""):
            raise ProblemError("unsupported_media_type", "send JSON, with content-type: application/json")


def _too_large(limit: int) -> ProblemError:
    return ProblemError("body_too_large", f"the body has more than {limit} bytes")


def _refuse_nul(value: object, path: str) -> None:
    """Check that no text has a NUL, which the database can't store. Raises: ProblemError."""
    if isinstance(value, str):
        if "\x00" in value:
            raise ProblemError("invalid_body", "there is a NUL character in it", field=path)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_nul(key, path)
            _refuse_nul(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_nul(item, f"{path}[{index}]")
