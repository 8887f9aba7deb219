"""Hazard 3 of WasmEdge: where a guest's memory can't be reserved, instantiating says OK, with a NULL base, and compiled
code then reads and writes the host's memory. Nothing of a guest may run then, its start section included.

The kernel refuses pages without any limit of ours: more than the machine has, or strict overcommit. A seccomp filter
stands in for it here.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edge_runtime
from edge_runtime.aot_cache import QUICK, AotFile
from edge_runtime.wasmedge import aot_compile, compile_module
from tests.guests.build import wat
from tests.support.deadlines import scaled

ROOT = Path(edge_runtime.__file__).parents[1]
CANARY = 0xC000_0000
"""An address of the host's, which is that of the guest's where the guest's memory begins at NULL.

The heap of Debian's Python, which is no position-independent program, begins anywhere in the first GiB and is below it.
"""

RUN = f"""
import ctypes, platform, struct, sys
from control.protocol.manifest import Manifest
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.guests.guest import GuestFault, LoadedFunction, Request, prepare
from edge_runtime.wasmedge import Unsafe

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
PRIVATE, FIXED, ANONYMOUS, NO_REPLACE = 0x02, 0x10, 0x20, 0x100000
place = libc.mmap(ctypes.c_void_p({CANARY}), ctypes.c_size_t(65536), 3, PRIVATE | ANONYMOUS | NO_REPLACE, -1, 0)
assert place == {CANARY}
canary = (ctypes.c_char * 8).from_address(place)

def refuse_pages():
    '''Every mmap of what is to be read and written, at a given place, has ENOMEM.'''
    number = {{"x86_64": 9, "aarch64": 222}}[platform.machine()]
    def step(code, true, false, k):
        return struct.pack("<HBBI", code, true, false, k)
    load, equal, answer = 0x20, 0x15, 0x06
    steps = [
        step(load, 0, 0, 0), step(equal, 0, 5, number),
        step(load, 0, 0, 16 + 8 * 3), step(equal, 0, 3, PRIVATE | FIXED | ANONYMOUS),
        step(load, 0, 0, 16 + 8 * 2), step(equal, 0, 1, 3),
        step(answer, 0, 0, 0x0005_0000 | 12), step(answer, 0, 0, 0x7FFF_0000),
    ]
    program = ctypes.create_string_buffer(b"".join(steps))
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, filter, 0, 0) == 0

def instantiate_alone():
    '''The module as it is, with none of what the runtime does before.'''
    from pathlib import Path
    from edge_runtime.wasmedge import Config, Module, instance
    config = Config(memory_pages=16)
    module = Module.from_file(Path(sys.argv[1]), config)
    executor = instance.Executor(config)
    store = instance.ImportStore(executor, [])
    made = instance.ffi.new("WasmEdge_ModuleInstanceContext **")
    refuse_pages()
    print("result", instance._instantiate(executor.pointer, made, store.pointer, module.pointer))

if "alone" in sys.argv:
    instantiate_alone()
    print("canary", canary.raw.hex())
    sys.exit()
prepare()
function = LoadedFunction.load(LocalFunction("f", 1, "", Manifest(), "", sys.argv[1], sys.argv[2]))
def call():
    try:
        function.call(Request("GET"))
    except (Unsafe, GuestFault) as error:
        print(type(error).__name__, error)

if "once before" in sys.argv:
    call()
if "refuse" in sys.argv:
    refuse_pages()
call()
print("canary", canary.raw.hex())
"""

WRITES = f"(i32.store (i32.const {CANARY}) (i32.const 0x41414141))"
MODULES = {
    "start": f"""(module (memory (export "memory") 1) (func $s {WRITES}) (start $s) (func (export "_start")))""",
    "entry": f"""(module (memory (export "memory") 1) (func (export "_start") {WRITES}))""",
    "initialize": f"""(module (memory (export "memory") 1) (func (export "_initialize") {WRITES})
        (func (export "_start")))""",
    "large": f"""(module (memory (export "memory") 1024) (func (export "_start") {WRITES}))""",
}
UNTOUCHED = "canary 0000000000000000"


@pytest.fixture(scope="module")
def aot(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AotFile]:
    folder = tmp_path_factory.mktemp("aot")
    return lambda name: compile_module(wat(MODULES[name]), folder, QUICK)


def run(aot: AotFile, *how: str) -> list[str]:
    command = [sys.executable, "-c", RUN, str(aot.path), aot.digest, *how]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=scaled(60))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.parametrize("name", ["start", "entry", "initialize"])
def test_nothing_of_a_guest_runs_where_its_memory_was_refused(aot: Callable[[str], AotFile], name: str) -> None:
    told, canary = run(aot(name), "refuse")
    assert told == "Unsafe the guest's memory was not reserved (0 pages of 1): nothing was run in it"
    assert canary == UNTOUCHED


def test_nor_where_it_is_refused_for_a_later_call(aot: Callable[[str], AotFile]) -> None:
    """A large memory is reserved anew each time."""
    before, told, canary = run(aot("large"), "once before", "refuse")
    assert "out of bounds memory access" in before
    assert told == "Unsafe the guest's memory was not reserved (0 pages of 1024): nothing was run in it"
    assert canary == UNTOUCHED


@pytest.mark.parametrize("name", MODULES)
def test_with_its_memory_it_traps_there(aot: Callable[[str], AotFile], name: str) -> None:
    told, canary = run(aot(name))
    assert "out of bounds memory access" in told
    assert canary == UNTOUCHED


def test_with_a_memory_of_its_own_a_start_section_would_write_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the two above would show nothing, and memories needn't be imported."""
    monkeypatch.setattr(aot_compile, "import_memories", lambda wasm: wasm)
    made = compile_module(wat(MODULES["start"]), tmp_path, QUICK)
    assert run(made, "alone") == ["result 0", "canary 4141414100000000"]
