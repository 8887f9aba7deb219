"""What stands in the place of a bucket's mark, which anybody may have written."""

from uuid import uuid4

import orjson
import pytest

from control.storage import owner_mark
from control.storage.owner_mark import OwnerMark, UnreadableMark


def mark(counter: int) -> bytes:
    return owner_mark.encode(OwnerMark(str(uuid4()), counter, str(uuid4())))


def test_a_mark_is_read_as_it_was_written() -> None:
    written = OwnerMark(str(uuid4()), 2**62, str(uuid4()))
    assert owner_mark.decode(owner_mark.encode(written)) == written


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
    ],
    ids=["nothing", "cut", "list", "no UTF-8", "deep", "long number", "no UUID"],
)
def test_what_is_no_mark_is_unreadable(data: bytes) -> None:
    assert isinstance(owner_mark.decode(data), UnreadableMark)
