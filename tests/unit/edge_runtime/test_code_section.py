"""table.grow is found where it is, and nowhere else: every form of instruction is stepped over by its exact size."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.code_section import grows_tables
from edge_runtime.guests.abi.detect import ModuleRefused, detect
from tests.guests.build import wat

GROW = "(drop (table.grow $t (ref.null func) (i32.const 1)))"
# Each with a constant whose bytes are those of table.grow, where it can have one.
FORMS = [
    "(drop (i32.const 2044))",
    "(drop (i64.const 2044))",
    "(drop (f32.const nan:0x40ffc))",
    "(drop (f64.const nan:0x0f0fc0ffc0ffc))",
    # Whose last byte is an opcode with more behind it.
    "(drop (f32.const -0x1p121))",
    "(drop (f64.const -0x1p961))",
    "(drop (v128.const i32x4 0 0 0 0xfc000000))",
    "(drop (v128.const i32x4 0x0ffc0ffc 0x0ffc0ffc 0x0ffc0ffc 0x0ffc0ffc))",
    "(drop (i32.load offset=2044 (i32.const 0)))",
    "(i64.store32 offset=2044 (i32.const 0) (i64.const -1))",
    "(block $a (block $b (br_table $a $b $a (i32.const 2044))))",
    "(drop (select (result i32) (i32.const 2044) (i32.const 2) (i32.const 3)))",
    "(drop (select (i32.const 2044) (i32.const 2) (i32.const 3)))",
    "(if (i32.const 2044) (then nop) (else (br 0)))",
    "(loop (drop (memory.grow (i32.const 2044))) (drop (memory.size)))",
    "(call $f) (call_indirect $t (type $v) (i32.const 2044))",
    "(drop (table.get $t (i32.const 2044)))",
    "(table.set $t (i32.const 2044) (ref.null func))",
    "(drop (ref.is_null (ref.func $f))) (drop (table.size $t))",
    "(table.fill $t (i32.const 2044) (ref.null func) (i32.const 0))",
    "(table.copy $t $t (i32.const 2044) (i32.const 0) (i32.const 0))",
    "(table.init $t 0 (i32.const 2044) (i32.const 0) (i32.const 0)) (elem.drop 0)",
    "(memory.copy (i32.const 2044) (i32.const 0) (i32.const 0))",
    "(memory.fill (i32.const 2044) (i32.const 0) (i32.const 0))",
    "(memory.init 0 (i32.const 2044) (i32.const 0) (i32.const 0)) (data.drop 0)",
    "(drop (i32.trunc_sat_f32_s (f32.const nan:0x40ffc)))",
    "(drop (i32.extend8_s (i32.const 2044)))",
    "(drop (v128.load offset=2044 (i32.const 0)))",
    "(drop (v128.load8_lane offset=2044 15 (i32.const 0) (v128.const i64x2 0 0)))",
    "(drop (v128.load32_zero offset=2044 (i32.const 0)))",
    "(drop (i8x16.extract_lane_s 15 (v128.const i64x2 0 0)))",
    "(drop (i8x16.shuffle 15 1 2 3 4 5 6 7 8 9 10 11 12 13 14 14 (v128.const i64x2 0 0) (v128.const i64x2 0 0)))",
    "(drop (i64x2.mul (i64x2.splat (i64.const 2044)) (v128.const i64x2 0 0)))",
    "(local.set 0 (i32.const 2044)) (drop (local.tee 0 (local.get 0)))",
    "(global.set $g (i32.const 2044)) (drop (global.get $g))",
    "(return)",
]  # fmt: skip


def module(*bodies: str) -> bytes:
    functions = "".join(f"(func (local i32 i64 i64) {body})" for body in bodies)
    return wat(
        f"""(module (type $v (func)) (memory (export "memory") 1) (table $t 1 funcref)
        (global $g (mut i32) (i32.const 0))
        (func $f) (elem funcref (ref.func $f)) (data "x") (func (export "_start")) {functions})"""
    )


def grows(wasm: bytes) -> bool:
    try:
        detect(wasm)
    except ModuleRefused as refused:
        return refused.code == "table_unbounded"
    return False


def test_every_form_of_instruction_is_stepped_over() -> None:
    for form in FORMS:
        assert not grows(module(form, "(drop (i32.const 2044))")), form
        assert grows(module("nop", f"(drop (i32.const 2044)) {form} (drop (i32.const 2044)) {GROW}")), form


@given(st.lists(st.sampled_from(FORMS), max_size=12), st.integers(0, 12), st.booleans())
def test_it_is_found_wherever_it_is(forms: list[str], place: int, there: bool) -> None:
    body = [*forms[:place], *([GROW] if there else []), *forms[place:]]
    assert grows(module("(drop (i32.const 2044))", " ".join(body))) == there


@given(st.binary(max_size=60))
def test_hostile_code_is_an_answer_and_no_error(tail: bytes) -> None:
    code = b"\x01\xff\x7f\x00\xfc\x0f" + tail
    assert isinstance(grows_tables(code, 0, len(code)), bool)


def test_what_cannot_be_decoded_counts_as_growing() -> None:
    assert grows_tables(b"\x01\x06\x00\x06\xfc\x0f\x00\x0b", 0, 8)
    assert not grows_tables(b"\x01\x06\x00\x41\xfc\x0f\x1a\x0b", 0, 8)
    # Its opcode at greater length, which is allowed.
    assert grows_tables(b"\x01\x07\x00\xfc\x8f\x80\x00\x00\x0b", 0, 9)
