"""The binding on the real library: ownership, host functions, traps, and what it refuses."""

import gc
from pathlib import Path

import pytest

from edge_runtime.wasmedge import (
    Config,
    EntryPoint,
    HandleClosed,
    HostModule,
    LinkError,
    LoadError,
    Memory,
    Module,
    Program,
    Trap,
    Unsafe,
)
from edge_runtime.wasmedge.c_api import Handle
from edge_runtime.wasmedge.memory_imports import import_memories
from tests.guests.build import guest, wat

CALLS = """(module
  (import "host" "two" (func $two (param i32 i32) (result i32)))
  (import "host" "wide" (func $wide (param i32 i64 i32) (result i32)))
  (import "host" "four" (func $four (param i32 i32 i32 i32) (result i32)))
  (import "host" "give" (func $give (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (call $give (call $two (i32.const -1) (i32.const 7)))
    (call $give (call $wide (i32.const 1) (i64.const -2) (i32.const 3)))
    (call $give (call $four (i32.const 1) (i32.const 2) (i32.const 3) (i32.const 0x80000000)))))"""


START = EntryPoint("_start")


def program(wasm, imports=(), pages=16):
    config = Config(memory_pages=pages)
    return Program(Module.from_bytes(import_memories(wasm), config), config, list(imports), [START])


def run(program, memory=None):
    with program.open(memory or Memory()):
        program.call(START)


def host(**functions):
    given = {
        "two": (("ii", "i"), lambda a, b: 0),
        "wide": (("iIi", "i"), lambda a, b, c: 0),
        "four": (("iiii", "i"), lambda a, b, c, d: 0),
        "give": (("i", ""), lambda a: None),
    }
    return HostModule("host", {name: (given[name][0], functions.get(name, given[name][1])) for name in given})


def test_values_cross_both_ways_as_unsigned_numbers():
    got = []
    imports = host(
        two=lambda a, b: got.append((a, b)) or 0xFFFFFFFE,
        wide=lambda a, b, c: got.append((a, b, c)) or 5,
        four=lambda a, b, c, d: got.append((a, b, c, d)) or 6,
        give=got.append,
    )
    run(program(wat(CALLS), [imports]))
    assert got == [(0xFFFFFFFF, 7), 0xFFFFFFFE, (1, 0xFFFFFFFFFFFFFFFE, 3), 5, (1, 2, 3, 0x80000000), 6]


class Oops(BaseException):
    """Not an Exception, as a cancellation isn't."""


@pytest.mark.parametrize("name", ["two", "wide", "four", "give"])
@pytest.mark.parametrize("error", [ValueError("inside"), Oops("inside"), IndexError("inside"), KeyboardInterrupt()])
def test_what_a_host_function_raises_ends_the_guest_and_comes_out(name, error):
    def fail(*_):
        raise error

    runs = program(wat(CALLS), [host(**{name: fail})])
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            run(runs)
        assert raised.value is error
    run(program(wat(CALLS), [host()]))


def test_a_result_that_does_not_fit_is_an_error_and_no_silence():
    with pytest.raises(OverflowError):
        run(program(wat(CALLS), [host(two=lambda a, b: 2**32)]))
    with pytest.raises(TypeError):
        run(program(wat(CALLS), [host(two=lambda a, b: None)]))


def test_an_access_out_of_bounds_is_an_answer_where_asked_for():
    got = []
    one = '(import "host" "f" (func $f (param i32 i32) (result i32))) (import "host" "give" (func $give (param i32)))'
    wasm = wat(
        f'(module {one} (memory (export "memory") 1)'
        '(func (export "_start") (call $give (call $f (i32.const 0) (i32.const 0)))))'
    )

    def outside(*_):
        raise IndexError

    imports = HostModule("host", {"f": (("ii", "i"), outside), "give": (("i", ""), got.append)}, out_of_bounds=21)
    run(program(wasm, [imports]))
    assert got == [21]


def test_two_host_modules_of_one_name_are_apart():
    """Their callbacks are kept by the modules themselves: one can't free the other's."""
    first, second = [], []
    one, two = host(give=first.append, two=lambda a, b: 1), host(give=second.append, two=lambda a, b: 2)
    runs_one, runs_two = program(wat(CALLS), [one]), program(wat(CALLS), [two])
    run(runs_two)
    two.close()
    del two, runs_two
    gc.collect()
    run(runs_one)
    assert (first[0], second[0]) == (1, 2)


def test_memory_is_seen_and_checked_while_the_guest_runs_and_gone_after():
    memory, seen = Memory(), []

    def look(a, b):
        memory.write(65530, b"123456")
        seen.append(memory.read(65530, 6))
        for outside in (
            lambda: memory.read(65530, 7),
            lambda: memory.write(65531, b"123456"),
            lambda: memory.need(2**32),
        ):
            with pytest.raises(IndexError, match="outside the guest's memory of 65536 bytes"):
                outside()
        return 0

    run(program(wat(CALLS), [host(two=look)]), memory)
    assert seen == [b"123456"]
    assert (memory.size, bytes(memory.buffer), memory.pages()) == (0, b"", 0)
    with pytest.raises(IndexError):
        memory.read(0, 1)


def test_memory_that_has_grown_is_seen():
    grows = wat("""(module (import "host" "look" (func $look (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "_start")
        (drop (call $look (i32.const 0) (i32.const 0)))
        (drop (memory.grow (i32.const 2)))
        (i32.store8 (i32.const 196607) (i32.const 42))
        (drop (call $look (i32.const 196607) (i32.const 1)))))""")
    memory, seen = Memory(), []
    imports = HostModule("host", {"look": (("ii", "i"), lambda at, size: seen.append(memory.read(at, size)) or 0)})
    runs = program(grows, [imports])
    run(runs, memory)
    assert seen == [b"", b"*"]


def test_every_call_has_a_fresh_instance():
    counts = wat("""(module (import "host" "give" (func $give (param i32))) (memory (export "memory") 1)
      (global $n (mut i32) (i32.const 0))
      (func (export "_start")
        (global.set $n (i32.add (global.get $n) (i32.const 1)))
        (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 10)))
        (call $give (i32.add (global.get $n) (i32.load (i32.const 8))))))""")
    got = []
    runs = program(counts, [HostModule("host", {"give": (("i", ""), got.append)})])
    for _ in range(3):
        run(runs)
    assert got == [11, 11, 11]


@pytest.mark.parametrize(
    ("name", "message"),
    [("trap", "unreachable"), ("divide", "divide by zero"), ("bounds", "out of bounds memory access")],
)
def test_traps(name, message):
    runs = program(guest(name))
    for _ in range(3):
        with pytest.raises(Trap, match=message):
            run(runs)


def test_growth_is_held_to_the_limit():
    runs = program(guest("hog"), pages=40)
    with pytest.raises(Trap, match="unreachable"):
        run(runs)
    assert runs.last_pages == 33, "1 page, then twice 16; a third would make it 49"


def test_bytes_that_are_no_module():
    config = Config(memory_pages=1)
    for wasm in (b"", b"\0asm", b"\0asm\1\0\0\0\xff", b"nonsense", guest("echo")[:500]):
        with pytest.raises(LoadError):
            Module.from_bytes(wasm, config)
    unbalanced = bytearray(guest("trap"))
    unbalanced[-2] = 0x1A  # drop, of an empty stack
    with pytest.raises(LoadError) as refused:
        Module.from_bytes(bytes(unbalanced), config)
    assert refused.value.code >> 8 == 2
    with pytest.raises(FileNotFoundError):
        Module.from_file(Path("/nonexistent"), config)


def test_imports_that_nobody_offers():
    runs = program(wat(CALLS))
    for _ in range(2):
        with pytest.raises(LinkError, match="unknown import"):
            run(runs)


def test_an_import_of_another_type():
    other = HostModule("host", {"two": (("i", "i"), lambda a: 0)})
    with pytest.raises(LinkError, match="incompatible import type"):
        run(program(wat(CALLS), [other]))


def test_after_a_failed_instantiation_the_next_is_good():
    """A data segment that doesn't fit fails half way; its memory must not stay alive in the store."""
    misfit = wat(
        '(module (memory (export "memory") 1) (func (export "_start")) (data (i32.const 65536) "x"))',
    )
    runs, good = program(misfit), program(guest("trap"))
    for _ in range(3):
        with pytest.raises((LinkError, Trap), match=r"data segment does not fit|out of bounds"):
            run(runs)
        with pytest.raises(Trap, match="unreachable"):
            run(good)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "exactly one memory"),
        ("(memory 1)", "exactly one memory"),
        ('(memory (export "other") 1)', "exactly one memory"),
        ('(memory (export "memory") (export "again") 1)', "exactly one memory"),
        ('(memory (export "memory") 0)', "starts with 0 pages; 1 to 16"),
        ('(memory (export "memory") 17)', "starts with 17 pages; 1 to 16"),
    ],
)
def test_memories_that_are_refused(fields, message):
    with pytest.raises(LinkError, match=message):
        program(wat(f'(module {fields} (func (export "_start")))'))


def test_a_program_without_its_entry():
    with pytest.raises(LinkError, match="no function _start"):
        run(program(wat('(module (memory (export "memory") 1))')))


def test_only_one_instance_is_alive():
    inner = program(guest("trap"))
    refused = []

    def nested(a, b):
        with pytest.raises(Unsafe, match="already has a live instance") as error:
            run(inner)
        refused.append(error)
        return 0

    run(program(wat(CALLS), [host(two=nested)]))
    assert len(refused) == 1
    with pytest.raises(Trap):
        run(inner)


# Ownership


class Counted(Handle):
    """A handle whose deletion is counted."""

    _delete = "delete"

    def __init__(self, log):
        class Library:
            delete = staticmethod(log.append)

        self._library = Library
        self._own("pointer")


def test_a_handle_is_closed_exactly_once():
    log = []
    with Counted(log) as handle:
        assert handle.pointer == "pointer"
        assert not handle.closed
    handle.close()
    del handle
    gc.collect()
    assert log == ["pointer"]


def test_a_forgotten_handle_is_closed():
    log = []
    Counted(log)
    gc.collect()
    assert log == ["pointer"]


def test_using_a_closed_handle_is_an_error():
    config = Config(memory_pages=1)
    config.close()
    assert config.closed
    with pytest.raises(HandleClosed, match="this Config has been closed"):
        Module.from_bytes(guest("trap"), config)
    runs = program(guest("trap"))
    runs.close()
    with pytest.raises(HandleClosed):
        run(runs)
    module = Module.from_bytes(guest("trap"), Config(memory_pages=1))
    module.close()
    module.close()
    with pytest.raises(HandleClosed):
        module.memories()


def test_many_instances_leave_no_memory_behind():
    got = []
    runs, traps = program(wat(CALLS), [host(give=got.append)]), program(guest("trap"))

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1])

    def some():
        for _ in range(2000):
            run(runs)
            got.clear()
            with pytest.raises(Trap):
                run(traps)

    some()
    before = resident()
    some()
    assert resident() - before < 1000, "pages of 4 KiB after 4,000 more instances"
