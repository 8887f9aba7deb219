"""The owner's mark, an object in the bucket, and what follows from it: pure rules, without I/O.

Anyone who can write to the bucket can write this object too. So it has a code (HMAC-SHA256) with a key that is in the
metadata and not in the bucket: a mark that is ahead of the metadata is believed only with a valid code.
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta

from control.protocol import wire

PREFIX = "skerry/"
"""Key prefix of control's own objects, which aren't artifacts."""
KEY = f"{PREFIX}owner.json"
BACKUPS = "backups/"
"""Key prefix of the backups of nodes' databases, which aren't artifacts either."""
MOST = 2**62
"""The highest counter of a mark, since the metadata continue from it."""
ANEW = 2**60
"""Where the metadata continue from when a bucket is taken over, if their counter is above it: no control counts that
far, but versions without codes continued from any counter that they found."""


class OwnerMark(msgspec.Struct, frozen=True):
    """The id of the control that owns a bucket, and the last step of its metadata written to the bucket."""

    owner: wire.Uuid
    counter: Annotated[int, Meta(ge=0, le=MOST)]
    step: wire.Uuid


class BucketMark(OwnerMark, frozen=True):
    """A mark as read from the bucket."""

    code: str = ""
    """'' if a version of control without codes made the mark."""


@dataclass(frozen=True)
class UnreadableMark:
    """An object under the mark's key that isn't a mark."""

    why: str


class Standing(Enum):
    """How a bucket's mark compares with the metadata, which were read after it."""

    SAME = "they agree"
    BEHIND = "the bucket lacks the last steps, or the mark its code: it is written next"
    AHEAD = "the metadata lack steps that they once had: they were restored"
    FOREIGN = "the bucket is another control's"
    FORGED = "the mark is ahead, and the metadata's key didn't make it; or the metadata counted on from such a one"


def encode(key: str, mark: OwnerMark) -> bytes:
    """Return the bytes of the mark's object. `key`: the metadata's secret key."""
    sealed = BucketMark(mark.owner, mark.counter, mark.step, _code_of(key, mark))
    return orjson.dumps(msgspec.to_builtins(sealed), option=orjson.OPT_INDENT_2)


def decode(data: bytes) -> BucketMark | UnreadableMark:
    """Return the mark in an object's bytes, or why they aren't one."""
    try:
        return msgspec.json.decode(data, type=BucketMark)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return UnreadableMark(str(error)[:200])


def compare(bucket: BucketMark, metadata: OwnerMark, key: str) -> Standing:
    """Compare a bucket's mark with that of the metadata, which must have been read later.

    A step is committed in the metadata first and written to the bucket afterwards. So the metadata are never behind
    the bucket, and never have a different step with the same counter, unless they were restored from a backup.
    """
    if bucket.owner != metadata.owner:
        return Standing.FOREIGN
    if metadata.counter > MOST // 2:
        return Standing.FORGED
    proven = hmac.compare_digest(bucket.code.encode(), _code_of(key, bucket).encode())
    if bucket.counter < metadata.counter:
        return Standing.BEHIND
    if (bucket.counter, bucket.step) == (metadata.counter, metadata.step):
        return Standing.SAME if proven else Standing.BEHIND
    return Standing.AHEAD if proven else Standing.FORGED


def code(key: str, name: str, raw: bytes) -> str:
    """Return the code for what control writes to the bucket as the object `name`."""
    return hmac.new(key.encode(), name.encode() + b"\0" + raw, hashlib.sha256).hexdigest()


def _code_of(key: str, mark: OwnerMark) -> str:
    return code(key, KEY, f"{mark.owner} {mark.counter} {mark.step}".encode())
