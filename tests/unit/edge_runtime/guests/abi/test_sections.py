"""Numbers of a module's sections are read as they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.guests.abi.binary import CORE_VERSION, MAGIC, Malformed
from edge_runtime.guests.abi.sections import SectionCursor, encoded_number, encoded_vector, sections_of


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_numbers(numbers: list[int]) -> None:
    cursor = SectionCursor(encoded_vector([encoded_number(each) for each in numbers]))
    assert [cursor.number() for _ in range(cursor.number())] == numbers
    assert cursor.at == len(cursor.data)


@pytest.mark.parametrize(
    ("encoded", "number"),
    [
        (b"\x00", 0),
        (b"\x3f", 63),
        (b"\x40", -64),
        (b"\x7f", -1),
        (b"\xc0\x00", 64),
        (b"\x80\x80\x80\x80\x78", -(2**31)),
    ],
)
def test_signed_numbers(encoded: bytes, number: int) -> None:
    assert SectionCursor(encoded).signed() == number


def test_a_section_that_is_cut_off() -> None:
    with pytest.raises(Malformed, match="ends too early"):
        list(sections_of(MAGIC + CORE_VERSION + b"\x01\x05\x00"))
