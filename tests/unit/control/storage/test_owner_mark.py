"""What stands in the place of a bucket's mark, which anybody may have written."""

from uuid import uuid4

import orjson
import pytest

from control.storage import owner_mark
from control.storage.owner_mark import BucketMark, OwnerMark, Standing, UnreadableMark

KEY = "the metadata's key"
OWNER, STEP, OTHER = (str(uuid4()) for _ in range(3))


def mark(counter: int) -> bytes:
    return owner_mark.encode(KEY, OwnerMark(str(uuid4()), counter, str(uuid4())))


def written(counter: int, step: str = STEP, *, key: str = KEY, owner: str = OWNER) -> BucketMark:
    """A mark as it is read from the bucket."""
    found = owner_mark.decode(owner_mark.encode(key, OwnerMark(owner, counter, step)))
    assert isinstance(found, BucketMark)
    return found


def test_a_mark_is_read_as_it_was_written() -> None:
    found = written(2**62)
    assert (found.owner, found.counter, found.step) == (OWNER, 2**62, STEP)


@pytest.mark.parametrize(
    ("bucket", "standing"),
    [
        (written(7), Standing.SAME),
        (written(6, OTHER), Standing.BEHIND),
        (written(8, OTHER), Standing.AHEAD),
        (written(7, OTHER), Standing.AHEAD),
        (written(7, owner=OTHER), Standing.FOREIGN),
        # Of a version that made no codes, or written by somebody who can write to the bucket alone.
        (BucketMark(OWNER, 7, STEP), Standing.BEHIND),
        (BucketMark(OWNER, 6, OTHER), Standing.BEHIND),
        (BucketMark(OWNER, 8, OTHER), Standing.FORGED),
        (BucketMark(OWNER, 7, OTHER), Standing.FORGED),
        (BucketMark(OWNER, 2**62, STEP, written(7).code), Standing.FORGED),
        (BucketMark(OWNER, 8, STEP, "\u00e9"), Standing.FORGED),
        (written(8, OTHER, key="another key"), Standing.FORGED),
    ],
)
def test_a_mark_that_is_ahead_is_believed_with_its_code_alone(bucket: BucketMark, standing: Standing) -> None:
    assert owner_mark.compare(bucket, OwnerMark(OWNER, 7, STEP), KEY) is standing


def test_metadata_that_counted_on_from_a_forged_mark_are_told_of() -> None:
    for counter in (2**61 + 1, 2**62 + 1):
        metadata = OwnerMark(OWNER, counter, STEP)
        for bucket in (written(7), written(2**62, OTHER), BucketMark(OWNER, counter, STEP)):
            assert owner_mark.compare(bucket, metadata, KEY) is Standing.FORGED


@pytest.mark.parametrize("counter", [-1, 2**62 + 1, 2**63 - 1, 2**63])
def test_a_counter_that_the_metadata_could_not_go_on_from_is_unreadable(counter: int) -> None:
    found = owner_mark.decode(mark(counter))
    assert isinstance(found, UnreadableMark)
    assert "counter" in found.why


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"owner": "\xff"}',
        mark(1)[:-1] + b', "more": ' + b"[" * 100_000,
        mark(1).replace(b'"counter": 1', b'"counter": ' + b"9" * 5000),
        orjson.dumps({"owner": "me", "counter": 1, "step": str(uuid4())}),
        orjson.dumps({"owner": OWNER, "counter": 1, "step": STEP, "code": 1}),
    ],
    ids=["nothing", "cut", "list", "no UTF-8", "deep", "long number", "no UUID", "no code"],
)
def test_what_is_no_mark_is_unreadable(data: bytes) -> None:
    assert isinstance(owner_mark.decode(data), UnreadableMark)
