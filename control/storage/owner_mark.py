"""The object by which a bucket says whose it is, and what follows from it: pure rules, without I/O."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta

from control import wire

PREFIX = "skerry/"
"""Of the keys that aren't artifacts."""
KEY = f"{PREFIX}owner.json"


class Mark(msgspec.Struct, frozen=True):
    """Whose a bucket is (`owner`, the id of a control), and at which step of its metadata."""

    owner: wire.Uuid
    counter: Annotated[int, Meta(ge=0, le=2**62)]
    """The metadata go on above it, so there must be room above."""
    step: wire.Uuid


@dataclass(frozen=True)
class Unreadable:
    """An object in the mark's place that is none."""

    why: str


class Standing(Enum):
    """How a bucket's mark stands to the metadata that were read after it."""

    SAME = "they agree"
    BEHIND = "the bucket lacks the last steps: they are written into it next"
    AHEAD = "the metadata lack steps that they once had: they were restored"
    FOREIGN = "the bucket is another control's"


def encode(mark: Mark) -> bytes:
    """The object's bytes."""
    return orjson.dumps(msgspec.to_builtins(mark), option=orjson.OPT_INDENT_2)


def decode(data: bytes) -> Mark | Unreadable:
    """What an object in the mark's place says."""
    try:
        return msgspec.json.decode(data, type=Mark)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(str(error)[:200])


def compare(bucket: Mark, metadata: Mark) -> Standing:
    """How `bucket` stands to `metadata`, which must have been read later.

    The metadata step first, and the bucket gets what was committed. So the metadata are never behind, and at an equal
    counter never another step, unless they were restored.
    """
    if bucket.owner != metadata.owner:
        return Standing.FOREIGN
    if bucket.counter > metadata.counter:
        return Standing.AHEAD
    if bucket.counter < metadata.counter:
        return Standing.BEHIND
    return Standing.SAME if bucket.step == metadata.step else Standing.AHEAD
