"""The Extism kernel: blocks that a plug-in and the host make, free and use, and what hostile addresses do."""

import contextlib
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import Config, Engine, Instance, Module, Store

from edge_runtime import aot_cache as aot
from edge_runtime.guests import extism_host as host_side
from edge_runtime.guests.abi import binary, extism
from edge_runtime.guests.abi.merge import merge
from edge_runtime.guests.extism_host import Blocks
from edge_runtime.guests.invocation import GuestFault
from tests.guests.build import KERNEL, build, wat
from tests.support.draws import examples

PAGE = 65536


def test_what_ships_is_built_from_its_source():
    assert KERNEL.with_suffix(".wasm").read_bytes() == build(KERNEL), "build it again: just guests"


def test_another_kernel_makes_other_aot_files():
    """Compiled plug-ins have the kernel in them: they are found by `_OPTIONS`, which must change with it."""
    kernel = hashlib.sha256(KERNEL.with_suffix(".wasm").read_bytes()).hexdigest()
    assert (aot._OPTIONS.split(", ")[1], kernel[:16]) == ("kernel 2", "e771fac188812397")


def test_it_offers_what_plugins_may_import():
    shape = binary.read(KERNEL.with_suffix(".wasm").read_bytes())
    assert {name: shape.export_signature(name) for name in shape.exports} == extism.KERNEL
    assert not shape.imports
    assert len(shape.memories) == 2
    assert not shape.tables


class KernelMemory:
    """The kernel's memory, as `Blocks` wants it, of `most` pages."""

    def __init__(self, memory, store, most):
        self.memory, self.store, self.most = memory, store, most

    def need(self, end):
        if end > self.memory.data_len(self.store):
            raise IndexError(end)

    def read(self, start, length):
        self.need(start + length)
        return bytes(self.memory.read(self.store, start, start + length))

    def write(self, start, data):
        self.need(start + len(data))
        self.memory.write(self.store, data, start)

    def grow(self, end):
        more = -(-end // PAGE) - self.memory.size(self.store)
        if more > 0:
            if self.memory.size(self.store) + more > self.most:
                return False
            self.memory.grow(self.store, more)
        return True


class Plugin:
    """A plug-in that hands all of the kernel out, and the host beside it."""

    module: "Compiled"

    def __init__(self, most=64):
        self.store = Store(self.module.engine)
        self.store.set_limits(memory_size=most * PAGE)
        self.instance = Instance(self.store, self.module.compiled, [])
        exports = self.instance.exports(self.store)
        self.host = Blocks()
        self.memory = KernelMemory(exports["extism:host/env memory"], self.store, most)
        self.host.memory = self.memory

    def __getattr__(self, name):
        """A function of the kernel, with unsigned numbers."""
        function = self.instance.exports(self.store)[name]
        parameters, results = extism.KERNEL[name]

        def call(*numbers):
            made = [
                n - (1 << bits) if n >> (bits - 1) else n
                for n, bits in zip(numbers, (64 if letter == "I" else 32 for letter in parameters), strict=True)
            ]
            answer = function(self.store, *made)
            return answer if answer is None else answer & (2**64 - 1 if results == "I" else 2**32 - 1)

        return call

    def load(self, handle, length):
        return bytes(self.load_u8(handle + at) for at in range(length))

    def put(self, handle, data):
        for at, byte in enumerate(data):
            self.store_u8(handle + at, byte)


class Compiled:
    def __init__(self, wasm):
        settings = Config()
        settings.wasm_multi_memory = True
        self.engine = Engine(settings)
        self.compiled = Module(self.engine, wasm)


@pytest.fixture(scope="module", autouse=True)
def module():
    Plugin.module = Compiled(_module())
    yield
    # wasmtime's objects can't be closed as the interpreter ends.
    del Plugin.module


def _module():
    imports = "".join(
        f'(import "extism:host/env" "{name}" (func ${name} (param {_types(p)}) {f"(result {_types(r)})" if r else ""}))'
        for name, (p, r) in extism.KERNEL.items()
    )
    exports = "".join(f'(export "{name}" (func ${name}))' for name in extism.KERNEL)
    return merge(wat(f'(module {imports} (memory (export "memory") 1) {exports})'))


def _types(letters):
    return " ".join("i64" if letter == "I" else "i32" for letter in letters)


SIDES = st.sampled_from(["plugin", "host"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("new"), SIDES, st.integers(1, 300)),
        st.tuples(st.just("free"), SIDES, st.integers(0, 40)),
    ),
    max_size=60,
)


@settings(max_examples=examples(50))
@given(STEPS)
def test_blocks_of_both_sides_keep_what_is_in_them(steps):
    plugin, live, made = Plugin(), {}, 0
    for step, side, number in steps:
        if step == "new":
            made += 1
            data = bytes([made % 256]) * number
            if side == "host":
                handle = plugin.host.new(data)
            else:
                handle = plugin.alloc(number)
                plugin.memory.write(handle, data)
            assert handle % 16 == 0
            for other, kept in live.items():
                assert handle + number <= other - 16 or other + len(kept) <= handle - 16, "two blocks in one place"
            live[handle] = data
        elif live:
            handle = sorted(live)[number % len(live)]
            del live[handle]
            plugin.host.free(handle) if side == "host" else plugin.free(handle)
            assert plugin.length(handle) == 0
            with pytest.raises(GuestFault):
                plugin.host.read(handle)
        for handle, data in live.items():
            assert plugin.length(handle) == plugin.length_unsafe(handle) == len(data)
            assert plugin.host.read(handle) == data


def test_what_is_freed_is_used_again():
    plugin = Plugin(most=4)
    for number in range(400):
        for size in (1000, 700 + number % 300, 17):
            handles = [plugin.alloc(size), plugin.host.new(bytes(size))]
            assert all(handles), f"no room in round {number}"
            plugin.free(handles[0])
            plugin.host.free(handles[1])
    assert plugin.memory.memory.size(plugin.store) <= 2


def test_freed_bytes_stay_until_they_are_taken():
    """Go's PDK sets as output what it has freed."""
    plugin = Plugin()
    handle = plugin.host.new(b"0123456789abcdef")
    plugin.free(handle)
    assert plugin.load(handle, 16) == b"0123456789abcdef"


def test_freeing_twice_frees_once():
    plugin = Plugin()
    handle = plugin.alloc(40)
    plugin.free(handle)
    plugin.free(handle)
    assert len({plugin.alloc(40), plugin.alloc(40)}) == 2


def test_no_room_is_told():
    plugin = Plugin(most=2)
    assert plugin.alloc(3 * PAGE) == 0
    assert plugin.alloc(0) == 0
    assert plugin.alloc(2**64 - 1) == plugin.alloc(2**63) == plugin.alloc(2**32) == plugin.alloc(0xF000_0001) == 0
    assert plugin.alloc(PAGE) > 0
    with pytest.raises(GuestFault, match="memory_pages") as full:
        plugin.host.new(bytes(2 * PAGE))
    assert full.value.status == 507
    assert plugin.host.new(b"") == 0


def test_words_and_bytes():
    plugin = Plugin()
    handle = plugin.alloc(16)
    plugin.store_u64(handle, 0x8877665544332211)
    plugin.store_u8(handle + 8, 0x199)
    assert plugin.load(handle, 9) == bytes.fromhex("112233445566778899")
    assert plugin.load_u64(handle + 1) == 0x9988776655443322


@pytest.mark.parametrize("at", [0, 1, 16, 24, 511, 2**31, 2**32, 2**32 + 528, 2**63, 2**64 - 1, 2**64 - 8])
def test_addresses_outside_the_blocks(at):
    plugin = Plugin()
    plugin.host.set_input(b"input")
    before = plugin.memory.read(0, PAGE)
    assert plugin.load_u8(at) == plugin.load_u64(at) == plugin.length(at) == plugin.length_unsafe(at) == 0
    plugin.store_u8(at, 255)
    plugin.store_u64(at, 2**64 - 1)
    plugin.free(at)
    assert plugin.memory.read(0, PAGE) == before


def test_the_end_of_the_blocks():
    plugin = Plugin(most=1)
    room = PAGE - 512 - 16 - 16
    last = plugin.alloc(room)
    assert last
    assert plugin.alloc(1) == 0
    end = last + room
    plugin.store_u64(end - 1, 2**64 - 1)
    assert plugin.load_u64(end - 1) == 2**64 - 1
    plugin.store_u8(end, 7)
    assert plugin.load_u8(end) == 0
    assert plugin.memory.read(end, 8) == b"\xff" * 7 + b"\0", "a byte after the blocks was stored to"


def test_input():
    plugin = Plugin()
    assert plugin.input_length() == plugin.input_offset() == plugin.input_load_u8(0) == plugin.input_load_u64(0) == 0
    plugin.host.set_input(b"0123456789")
    assert plugin.input_length() == plugin.length(plugin.input_offset()) == 10
    assert plugin.load(plugin.input_offset(), 10) == b"0123456789"
    assert [plugin.input_load_u8(at) for at in (0, 9, 10, 2**64 - 1)] == [*b"09", 0, 0]
    assert plugin.input_load_u64(2) == int.from_bytes(b"23456789", "little")
    assert plugin.input_load_u64(3) == plugin.input_load_u64(2**64 - 8) == 0


def test_output_and_error():
    plugin = Plugin()
    assert plugin.host.output() == b""
    assert plugin.host.error() is None
    handle = plugin.host.new(b"answer")
    plugin.output_set(handle + 2, 3)
    assert (plugin.host.output_length(), plugin.host.output()) == (3, b"swe")
    plugin.error_set(handle)
    assert plugin.host.error() == b"answer"
    plugin.error_set(0)
    assert plugin.host.error() is None


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (511, 4), (528, PAGE), (PAGE - 99, 100), (2**64 - 1, 1), (0, 2**64 - 1), (528, 2**64 - 1), (2**32, 8)],
)
def test_an_output_outside_the_memory_is_none(start, length):
    plugin = Plugin()
    plugin.output_set(start, length)
    assert plugin.host.output() == b""
    plugin.output_set(plugin.host.new(b"answer"), 6)
    plugin.output_set(start, length)
    assert plugin.host.output() == b"answer"


def test_an_output_may_be_where_no_block_is():
    """As by Extism, whose kernel looks at the memory's bounds alone."""
    plugin = Plugin()
    plugin.output_set(PAGE - 100, 100)
    assert plugin.host.output() == bytes(100)


@pytest.mark.parametrize("at", [1, 511, PAGE, 2**32 + 528, 2**64 - 1])
def test_an_error_outside_the_memory_is_none(at):
    plugin = Plugin()
    handle = plugin.host.new(b"error")
    plugin.error_set(handle)
    plugin.error_set(at)
    assert plugin.host.error() == b"error"
    plugin.free(handle)
    assert plugin.host.error() is None
    plugin.error_set(handle + 1)
    assert plugin.host.error() is None


def test_freeing_the_input_takes_it_away():
    for free in ("plugin", "host"):
        plugin = Plugin()
        plugin.host.set_input(b"0123456789")
        handle = plugin.input_offset()
        plugin.host.free(handle) if free == "host" else plugin.free(handle)
        assert (plugin.input_offset(), plugin.input_length(), plugin.input_load_u8(0)) == (handle, 0, 0)


def test_the_host_frees_a_block_once():
    plugin = Plugin(most=1)
    handle = plugin.alloc(40)
    plugin.host.free(handle)
    plugin.host.free(handle)
    plugin.alloc(PAGE - 512 - 56 - 100)
    assert {plugin.alloc(40), plugin.alloc(40)} == {handle, 0}


def test_what_was_set_before_the_input_is_gone():
    plugin = Plugin()
    handle = plugin.alloc(40)
    plugin.put(handle, b"x" * 40)
    plugin.output_set(handle, 3)
    plugin.error_set(handle)
    plugin.host.set_input(b"")
    assert (plugin.length(handle), plugin.host.output(), plugin.host.error()) == (0, b"", None)
    again = plugin.alloc(40)
    assert (again, plugin.load(again, 40)) == (handle, bytes(40))


def test_what_is_freed_stays_while_there_is_other_room():
    plugin = Plugin()
    handles = [plugin.alloc(40), plugin.host.new(b"x" * 40)]
    for handle in handles:
        plugin.put(handle, b"kept")
        plugin.free(handle)
    assert {plugin.alloc(40), plugin.host.new(b"y" * 40)}.isdisjoint(handles)
    assert [plugin.load(handle, 4) for handle in handles] == [b"kept"] * 2


SPOILT = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 2**64 - 1)), max_size=12)


@settings(max_examples=examples(50))
@given(SPOILT, st.data())
def test_spoilt_blocks_harm_only_their_own_call(spoilt, data):
    """Whatever stands in the blocks' heads, the host stays inside the memory, or says what is wrong."""
    plugin = Plugin(most=3)
    handles = [plugin.host.new(bytes(size)) for size in (16, 40, 100)]
    plugin.free(handles[1])
    for at, value in spoilt:
        plugin.store_u64(512 + at, value)
    for _ in range(6):
        handle = data.draw(st.sampled_from([*handles, 512 + data.draw(st.integers(0, 400)), 2**64 - 1]))
        with contextlib.suppress(GuestFault):
            plugin.host.read(handle)
            plugin.host.free(handle)
            plugin.host.new(bytes(data.draw(st.integers(1, 200))))
            plugin.host.error()
    with contextlib.suppress(GuestFault):
        plugin.host.set_input(b"input")
    assert plugin.memory.memory.size(plugin.store) <= 3


def test_a_length_of_all_blocks_that_is_spoilt_is_told():
    plugin = Plugin()
    plugin.memory.write(16, (2**60).to_bytes(8, "little"))
    with pytest.raises(GuestFault, match="spoilt"):
        plugin.host.set_input(b"input")
    with pytest.raises(GuestFault, match="memory_pages"):
        plugin.host.new(b"input")


def test_the_layout_is_said_once_on_each_side():
    text = KERNEL.read_text()
    assert f"{host_side._MARK:x}" in text.replace("_", "")
    assert f"i32.const {host_side._USED}" in text
