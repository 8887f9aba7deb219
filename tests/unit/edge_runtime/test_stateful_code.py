"""What uses tables or passive data is found wherever it is, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.code_section import Unknown, stateful
from edge_runtime.guests.abi.sections import CODE, sections_of
from tests.unit.edge_runtime.test_code_section import FORMS, GROW, module

FOUND = {
    GROW: ["table.grow"],
    "(table.set $t (i32.const 2044) (ref.null func))": ["table.set"],
    "(table.fill $t (i32.const 2044) (ref.null func) (i32.const 0))": ["table.fill"],
    "(table.copy $t $t (i32.const 2044) (i32.const 0) (i32.const 0))": ["table.copy"],
    "(table.init $t 0 (i32.const 2044) (i32.const 0) (i32.const 0)) (elem.drop 0)": ["table.init", "elem.drop"],
    "(memory.init 0 (i32.const 2044) (i32.const 0) (i32.const 0)) (data.drop 0)": ["memory.init", "data.drop"],
}
"""The instructions of forms in which there are any."""


def code(wasm: bytes) -> bytes:
    return dict(sections_of(wasm))[CODE]


@given(st.lists(st.lists(st.sampled_from([*FORMS, GROW]), max_size=4).map(tuple), min_size=1, max_size=4))
def test_every_instruction(bodies: list[tuple[str, ...]]) -> None:
    expected = [name for body in bodies for form in body for name in FOUND.get(form, [])]
    assert list(stateful(code(module(*map(" ".join, bodies))))) == expected


def test_the_forms_have_all_of_them() -> None:
    assert {form for form in FOUND if form != GROW} <= set(FORMS)


@pytest.mark.parametrize("content", [b"\x01\x04\x00\xfc\x16\x0b", b"\x01\x03\x00\xff\x0b", b"\x01\x09\x00\x0b"])
def test_what_cant_be_decoded(content: bytes) -> None:
    with pytest.raises(Unknown):
        list(stateful(content))
