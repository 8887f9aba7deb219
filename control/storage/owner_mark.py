"""The mark of a bucket's owner, an object in it, and what follows from it: pure rules, without I/O."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta

from control import wire

PREFIX = "skerry/"
"""Prefix of the keys of control's own objects, which aren't artifacts."""
KEY = f"{PREFIX}owner.json"


class OwnerMark(msgspec.Struct, frozen=True):
    """The id of the control that owns a bucket, and the step of its metadata that the bucket has seen."""

    owner: wire.Uuid
    counter: Annotated[int, Meta(ge=0, le=2**62)]
    """At most 2^62, since the metadata count on from it."""
    step: wire.Uuid


@dataclass(frozen=True)
class UnreadableMark:
    """An object in the mark's place that isn't a mark."""

    why: str


class Standing(Enum):
    """How a bucket's mark compares with the metadata, which were read after it."""

    SAME = "they agree"
    BEHIND = "the bucket lacks the last steps: they are written into it next"
    AHEAD = "the metadata lack steps that they once had: they were restored"
    FOREIGN = "the bucket is another control's"


def encode(mark: OwnerMark) -> bytes:
    """The bytes of the mark's object."""
    return orjson.dumps(msgspec.to_builtins(mark), option=orjson.OPT_INDENT_2)


def decode(data: bytes) -> OwnerMark | UnreadableMark:
    """The mark that an object's bytes are, or why they aren't one."""
    try:
        return msgspec.json.decode(data, type=OwnerMark)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return UnreadableMark(str(error)[:200])


def compare(bucket: OwnerMark, metadata: OwnerMark) -> Standing:
    """Compare a bucket's mark with that of the metadata, which must have been read later.

    A step is committed in the metadata first and written to the bucket afterwards. So the metadata are never behind
    the bucket, and never have another step with the same counter, unless they were restored from a backup.
    """
    if bucket.owner != metadata.owner:
        return Standing.FOREIGN
    if bucket.counter > metadata.counter:
        return Standing.AHEAD
    if bucket.counter < metadata.counter:
        return Standing.BEHIND
    return Standing.SAME if bucket.step == metadata.step else Standing.AHEAD
