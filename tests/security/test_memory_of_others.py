"""What guests do with their memories, at their bounds most of all, gives the same in instance after instance on the
memories that one worker keeps as by wasmtime in fresh ones."""

import itertools
import os
import random
from pathlib import Path

import pytest

from edge_runtime.wasmedge import QUICK, Config, EntryPoint, Memory, Module, Program, Trap, compile_module
from edge_runtime.wasmedge.memory import PAGE
from edge_runtime.wasmedge.memory_imports import import_memories
from tests.guests.build import wat
from tests.support import by_wasmtime

PAGES = 24
"""`memory_pages`: a maximum that is larger, or isn't there, is this for wasmtime."""
RUNS = int(os.environ.get("SKERRY_TEST_EXAMPLES", "40"))
"""Runs of calls for each shape, in compiled code; a fifth of them where it is interpreted."""
Limits = tuple[int, int | None]
SHAPES: list[list[Limits]] = [
    [(1, None)],
    [(1, 1)],
    [(4, 7)],
    [(5, None)],
    [(17, 40)],
    [(1, None), (1, None)],
    [(6, 8), (1, None)],
]

FUNCTIONS = """
  (data (memory {m}) (i32.const 16) "active{m}")
  (func (export "size{m}") (result i32) (memory.size {m}))
  (func (export "grow{m}") (param i32) (result i32) (memory.grow {m} (local.get 0)))
  (func (export "load{m}") (param i32) (result i32) (i32.load {m} align=1 (local.get 0)))
  (func (export "far{m}") (param i32) (result i32) (i32.load8_u {m} offset=4294967295 (local.get 0)))
  (func (export "store{m}") (param i32 i32) (result i32)
    (i32.store {m} align=1 (local.get 0) (local.get 1)) (i32.const 1))
  (func (export "fill{m}") (param i32 i32) (result i32)
    (memory.fill {m} (local.get 0) (i32.const 171) (local.get 1)) (i32.const 1))
  (func (export "init{m}") (param i32 i32) (result i32)
    (memory.init {m} $passive (local.get 0) (i32.const 0) (local.get 1)) (i32.const 1))
  (func (export "copy{m}") (param i32 i32) (result i32)
    (memory.copy {m} {other} (local.get 0) (local.get 1) (i32.const 5000)) (i32.const 1))
  (func (export "all{m}") (result i32) (local $at i32) (local $sum i32)
    (loop $next
      (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 31)) (i32.load {m} (local.get $at))))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 4)))
        (i32.mul (memory.size {m}) (i32.const 65536)))))
    (local.get $sum))"""
GLOBAL = """
  (func (export "drop") (result i32) (data.drop $passive) (i32.const 1))
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count))
  (func (export "table") (result i32) (table.grow $table (ref.null func) (i32.const 1)))"""
ARGUMENTS = {
    "size": 0, "grow": 1, "load": 1, "far": 1, "store": 2, "fill": 2, "init": 2, "copy": 2, "all": 0,
}  # fmt: skip


def text(shape: list[Limits], most: int | None) -> str:
    """The module; `most` bounds what a memory may grow to."""
    fields = []
    for number, (minimum, maximum) in enumerate(shape):
        bounds = [each for each in (maximum, most) if each is not None]
        name = "memory" if number == 0 else "other"
        fields.append(f'(memory (export "{name}") {minimum} {min(bounds) if bounds else ""})')
    fields.append('(data $passive "passive") (global $count (mut i32) (i32.const 7)) (table $table 4 8 funcref)')
    fields += [FUNCTIONS.format(m=number, other=len(shape) - 1 - number) for number in range(len(shape))]
    return f"(module {' '.join(fields)} {GLOBAL})"


def functions(shape: list[Limits]) -> dict[str, int]:
    """How many arguments each takes."""
    each = {f"{name}{number}": count for name, count in ARGUMENTS.items() for number in range(len(shape))}
    return each | {"drop": 0, "count": 0, "table": 0}


def made_up(shape: list[Limits], chance: random.Random, count: int) -> list[list[tuple[str, list[int]]]]:
    """Runs of calls: first all that a call before could have left."""
    takes = functions(shape)
    sums = [(f"{name}{number}", []) for name in ("all", "size") for number in range(len(shape))]
    edges = [0, *itertools.chain.from_iterable((low, low + 1, low + 3, high or PAGES) for low, high in shape), 65536]

    def address() -> int:
        near = chance.choice((-PAGE, -5001, -5000, -4, -3, -1, 0, 1, 5000))
        return min(max(0, chance.choice(edges) * PAGE + near), 0xFFFF_FFFF)

    def argument(name: str, position: int) -> int:
        if name.startswith("grow"):
            return chance.choice((0, 1, 1, 2, 3, 20, 65535, 0xFFFF_FFFF))
        if position and not name.startswith("copy"):
            return chance.choice((0, 1, 7, 8, 5000, PAGE, 3 * PAGE))
        return address()

    def run() -> list[tuple[str, list[int]]]:
        names = chance.choices(list(takes), k=chance.randint(1, 10))
        return [*sums, ("count", []), *((n, [argument(n, i) for i in range(takes[n])]) for n in names)]

    return [run() for _ in range(count)]


@pytest.mark.parametrize(("compiled", "count"), [(False, RUNS // 5), (True, RUNS)], ids=["interpreted", "compiled"])
def test_one_reservation_behaves_as_fresh_memories_do(compiled: bool, count: int, tmp_path: Path) -> None:
    with by_wasmtime.apart() as pool:
        traps = answers = 0
        for shape in SHAPES:
            runs = made_up(shape, random.Random(f"{shape}"), count)
            theirs = pool.submit(by_wasmtime.calls, wat(text(shape, PAGES)), runs)
            ours = by_one(shape, wat(text(shape, None)), runs, tmp_path if compiled else None)
            for run, mine, other in zip(runs, ours, theirs.result(), strict=True):
                assert mine == other, (shape, run)
            traps += sum(run[-1] == "trap" for run in ours)
            answers += sum(map(len, ours))
    assert traps > 2 * count
    assert answers > 30 * count


def by_one(
    shape: list[Limits], wasm: bytes, runs: list[list[tuple[str, list[int]]]], folder: Path | None
) -> list[list[int | str]]:
    """As `by_wasmtime.calls`, by one program, whose memories are reserved once; compiled to `folder`."""
    second = "other" if len(shape) > 1 else ""
    config = Config(memory_pages=PAGES, second_memory=bool(second))
    if folder is None:
        module = Module.from_bytes(import_memories(wasm), config)
    else:
        aot = compile_module(wasm, folder, QUICK, merged=wasm if second else None)
        module = Module.from_file(aot.path, config)
    entries = {name: EntryPoint(name, ("i" * count, "i")) for name, count in functions(shape).items()}
    program = Program(module, config, [], list(entries.values()), second)
    found, reserved = [], set()
    for run in runs:
        answers: list[int | str] = []
        try:
            with program.open(Memory(), Memory() if second else None):
                for name, arguments in run:
                    answers.append(program.call(entries[name], *arguments))
        except Trap:
            answers.append("trap")
        found.append(answers)
        reserved.add(id(program._reserved))
    assert len(reserved) == 1
    program.close()
    return found
