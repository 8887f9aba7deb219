"""A guest's memory is reserved once for many instances, and none sees what another left in it."""

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.wasmedge import (
    PAGE,
    QUICK,
    Config,
    EntryPoint,
    HostModule,
    LinkError,
    Memory,
    Module,
    Program,
    Trap,
    Unsafe,
    compile_module,
    instance,
    memory,
)
from edge_runtime.wasmedge.memory_imports import import_memories
from tests.guests.build import guest, wat

START = EntryPoint("_start")
END = EntryPoint("end")

SPOILS = """(module (import "host" "give" (func $give (param i32)))
  (memory (export "memory") {pages}) (data (i32.const 8) "data")
  ;; Gives how many pages there are, the word of the data section, and how many of the words elsewhere aren't zero; then
  ;; it writes to all of them, and grows.
  (func (export "_start") (local $at i32) (local $spoilt i32) (local $end i32)
    (call $give (memory.size))
    (call $give (i32.load (i32.const 8)))
    (local.set $end (i32.mul (memory.size) (i32.const 65536)))
    (loop $next
      (if (i32.ne (local.get $at) (i32.const 8)) (then
        (local.set $spoilt (i32.add (local.get $spoilt) (i32.ne (i32.load (local.get $at)) (i32.const 0))))))
      (i32.store (local.get $at) (i32.const -1))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const {step}))) (local.get $end))))
    (call $give (local.get $spoilt))
    {then}))"""
DATA = int.from_bytes(b"data", "little")

THENS = {
    "ends": "",
    "traps": "unreachable",
    "grows": "(drop (memory.grow (i32.const 1)))",
    "grows and writes": """(drop (memory.grow (i32.const 2))) (if (i32.load (local.get $end)) (then unreachable))
        (i32.store (local.get $end) (i32.const 5))""",
    "fails to grow": "(drop (memory.grow (i32.const 60000)))",
}


@pytest.fixture
def got() -> Iterator[list[int]]:
    yield []
    # Programs, with their memories, whose modules' callbacks hold the list above. What is older is no matter.
    gc.collect(1)


def program(wasm: bytes, got: list[int], pages: int = 2048) -> Program:
    config = Config(memory_pages=pages)
    given = HostModule("host", {"give": (("i", ""), got.append)})
    return Program(Module.from_bytes(import_memories(wasm), config), config, [given], [START])


def run(runs: Program) -> None:
    with runs.open(Memory()):
        runs.call(START)


@pytest.mark.parametrize("pages", [1, memory.SMALL // PAGE, memory.SMALL // PAGE + 1, 17, memory.LARGE // PAGE])
@pytest.mark.parametrize("then", THENS)
def test_each_instance_finds_its_memory_as_the_module_declares_it(got: list[int], pages: int, then: str) -> None:
    # Each word, several in a page, one in each.
    step = 4 if pages < 3 else 252 if pages < memory.LARGE // PAGE else 4092
    runs = program(wat(SPOILS.format(pages=pages, then=THENS[then], step=step)), got)
    for _ in range(4):
        got.clear()
        if then == "traps":
            with pytest.raises(Trap):
                run(runs)
        else:
            run(runs)
        assert got == [pages, DATA, 0]


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The limits of each memory that is reserved."""
    made: list[object] = []
    reserve = instance.ReservedMemories
    monkeypatch.setattr(
        instance, "ReservedMemories", lambda limits, image: made.append(limits) or reserve(limits, image)
    )
    return made


@pytest.mark.parametrize("then", THENS)
def test_a_memory_is_reserved_once(got: list[int], reserved: list[object], then: str) -> None:
    runs = program(wat(SPOILS.format(pages=1, then=THENS[then], step=4)), got)
    for _ in range(5):
        try:
            run(runs)
        except Trap:
            assert then == "traps"
    assert reserved == [[(1, 2048)]]


def test_a_large_one_is_reserved_each_time(got: list[int], reserved: list[object]) -> None:
    """What is mapped for writing counts against the worker's limit, used or not."""
    runs = program(wat(SPOILS.format(pages=memory.LARGE // PAGE, then="", step=65536)), got)
    for _ in range(3):
        run(runs)
    assert len(reserved) == 3


TURNS = """(module (import "host" "turn" (func $turn (result i32))) (memory (export "memory") 1)
  (func (export "_start")
    (if (i32.eqz (call $turn))
      (then (drop (memory.grow (i32.const 800))) (memory.fill (i32.const 0) (i32.const 1) (i32.const 52494336)))
      (else (drop (i32.load8_u (i32.const {at})))))))"""


@pytest.mark.parametrize("compiled", [False, True], ids=["interpreted", "compiled"])
@pytest.mark.parametrize("at", [65536, 65536 + 4096, 26_000_000, 52_494_335])
def test_what_a_call_grew_by_is_out_of_the_next_ones_bounds_and_given_back(
    at: int, compiled: bool, reserved: list[object], tmp_path: Path
) -> None:
    """Compiled code is kept in its bounds by the mapping alone."""
    turns = [0, 1, 0, 1, 1]
    config = Config(memory_pages=1024)
    given = HostModule("host", {"turn": (("", "i"), lambda: turns[0])})
    wasm = wat(TURNS.format(at=at))
    if compiled:
        module = Module.from_file(compile_module(wasm, tmp_path, QUICK).path, config)
    else:
        module = Module.from_bytes(import_memories(wasm), config)
    runs = Program(module, config, [given], [START])
    before = resident()
    while turns:
        if turns[0]:
            with pytest.raises(Trap, match="out of bounds memory access"):
                run(runs)
        else:
            run(runs)
        assert resident() - before < 8 * 2**20
        turns.pop(0)
    assert len(reserved) == 1


def resident() -> int:
    """Bytes of memory that this process has written to. By the page: statm is off by what each processor may owe it."""
    found = re.search(r"(?m)^Anonymous: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Other:
    """What isn't what is known of the library's object."""

    pages = most = 7
    base = memory.ffi.NULL


@pytest.mark.parametrize(
    ("name", "lies"),
    [("_inside", lambda *_: Other), ("_mmap", lambda *_: memory.ffi.NULL), ("_madvise", lambda *_: -1)],
)
def test_what_can_not_be_made_as_it_was_is_reserved_anew(
    got: list[int], reserved: list[object], monkeypatch: pytest.MonkeyPatch, name: str, lies: object
) -> None:
    runs = program(wat(SPOILS.format(pages=17, then=THENS["grows"], step=252)), got)
    monkeypatch.setattr(memory, name, lies)
    for _ in range(3):
        got.clear()
        run(runs)
        assert got == [17, DATA, 0]
    assert len(reserved) == 3


def test_growth_keeps_to_what_the_module_and_the_node_allow(got: list[int]) -> None:
    tries = """(module (import "host" "give" (func $give (param i32))) (memory (export "memory") {limits})
      (func (export "_start") (loop $next (br_if $next (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (call $give (memory.size))))"""
    for limits, pages, most in (("1 7", 16, 7), ("1", 16, 16), ("2 40", 16, 16), ("3 3", 16, 3)):
        for _ in range(2):
            run(program(wat(tries.format(limits=limits)), got, pages))
            assert got.pop() == most


STARTS = """(module (import "host" "turn" (func $turn (result i32))) (memory (export "memory") 1)
  (func $start (drop (memory.grow (i32.const 3))) (i32.store (i32.const 100) (i32.const 7))
    (if (i32.eq (call $turn) (i32.const 1)) (then unreachable)))
  (start $start)
  (func (export "_start")
    (if (i32.ne (memory.size) (i32.const 4)) (then unreachable))
    (if (i32.ne (i32.load (i32.const 100)) (i32.const 7)) (then unreachable))))"""


def test_a_start_section_runs_in_each_instance_and_leaves_nothing_where_it_fails(reserved: list[object]) -> None:
    turns = [0, 1, 0, 2, 0]
    config = Config(memory_pages=5)

    def turn() -> int:
        if turns[0] == 2:
            raise KeyboardInterrupt
        return turns[0]

    given = HostModule("host", {"turn": (("", "i"), turn)})
    runs = Program(Module.from_bytes(import_memories(wat(STARTS)), config), config, [given], [START])
    while turns:
        if turns[0]:
            with pytest.raises(Trap if turns[0] == 1 else KeyboardInterrupt):
                run(runs)
        else:
            run(runs)
        turns.pop(0)
    assert len(reserved) == 3, "what failed to instantiate is reserved anew"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit])
def test_whatever_ends_a_call_leaves_nothing(got: list[int], error: type[BaseException]) -> None:
    def give(value: int) -> None:
        got.append(value)
        if len(got) == 3 and failing:
            raise error

    config = Config(memory_pages=16)
    wasm = import_memories(wat(SPOILS.format(pages=2, then="", step=4)))
    given = HostModule("host", {"give": (("i", ""), give)})
    runs = Program(Module.from_bytes(wasm, config), config, [given], [START])
    for failing in (True, False, True, False):
        got.clear()
        if failing:
            with pytest.raises(error):
                run(runs)
        else:
            run(runs)
        assert got == [2, DATA, 0]


def test_a_program_is_not_closed_under_its_instance(got: list[int]) -> None:
    runs = program(wat(SPOILS.format(pages=1, then="", step=4)), got)
    with runs.open(Memory()):
        with pytest.raises(Unsafe, match="live instance"):
            runs.close()
        runs.call(START)
    assert got == [1, DATA, 0]
    runs.close()


def test_a_kernel_that_makes_holes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux before 6.12: what it refuses to map over a reservation is no longer reserved."""
    memory.check_refusals()
    base = memory.ffi.cast("void *", 2**40)
    unmapped: list[object] = []
    monkeypatch.setattr(memory, "_munmap", lambda *place: unmapped.append(place))
    for answers, refused in (
        ([base, memory._FAILED, base], True),
        ([base, memory._FAILED, memory._FAILED], False),
        ([base, base], False),
        ([memory._FAILED], False),
    ):
        left = iter(answers)
        monkeypatch.setattr(memory, "_mmap", lambda *_, left=left: next(left))
        if refused:
            with pytest.raises(Unsafe, match=r"6\.12"):
                memory.check_refusals()
        else:
            memory.check_refusals()
        assert list(left) == []
    assert len(unmapped) == 3


def test_programs_take_turns_in_keeping_their_memories(got: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 12 GiB of addresses; with too many of them the kernel would refuse the next one."""
    gc.collect()
    monkeypatch.setattr(instance, "KEPT", 3)
    many = [program(wat(SPOILS.format(pages=1, then="", step=4)), got) for _ in range(7)]
    for _ in range(2):
        for runs in many:
            got.clear()
            run(runs)
            assert got == [1, DATA, 0]
            assert len(Program._keeping) <= 3
    for runs in many:
        runs.close()
    assert not set(many) & set(Program._keeping)


def test_closing_a_program_gives_its_addresses_back(got: list[int]) -> None:
    def reserved() -> int:
        return sum(
            int(line.split()[1])
            for line in Path("/proc/self/smaps").read_text().splitlines()
            if line.startswith("Size:")
        )

    gc.collect()
    before = reserved()
    runs = program(wat(SPOILS.format(pages=1, then="", step=4)), got)
    run(runs)
    assert reserved() - before > 11 * 2**20, "KiB"
    runs.close()
    assert reserved() - before < 2**20


def test_a_module_whose_memory_is_its_own_is_refused(got: list[int]) -> None:
    """The host would look into another one."""
    config = Config(memory_pages=16)
    with pytest.raises(LinkError, match="aren't imported"):
        Program(Module.from_bytes(guest("trap"), config), config, [], [START])


@pytest.mark.parametrize("wrong", ["no base", "no pages"])
def test_what_was_not_reserved_is_seen_each_time(got: list[int], monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    runs = program(wat(SPOILS.format(pages=memory.LARGE // PAGE, then="", step=65536)), got)
    run(runs)
    got.clear()
    with monkeypatch.context() as patch:
        if wrong == "no base":
            patch.setattr(memory, "_memory_pointer", lambda *_: memory.ffi.NULL)
        else:
            patch.setattr(memory, "_memory_pages", lambda _: 0)
        with pytest.raises(Unsafe, match="nothing was run in it"):
            run(runs)
        assert not got
    run(runs)
    assert got == [memory.LARGE // PAGE, DATA, 0]
