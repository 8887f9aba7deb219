"""Machine code in a module: WasmEdge's loader would run what a custom section `wasmedge` of plain wasm brings, and
believe that it is what was compiled of the module. It is refused at upload, and not loaded where it comes all the same.
"""

import hashlib
from pathlib import Path

import pytest

from control.protocol.manifest import Manifest
from edge_runtime.guests.abi.detect import ModuleRefused, detect
from edge_runtime.guests.function_code import compile_artifact
from edge_runtime.guests.guest import GuestFault, LoadedFunction, Request
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.oneshot.check import check_module
from edge_runtime.wasmedge import QUICK, Config, LoadError, Module
from edge_runtime.wasmedge.aot_compile import _CompilerConfig
from edge_runtime.wasmedge.c_api import ffi, library
from edge_runtime.wasmedge.memory_imports import import_memories
from edge_runtime.wasmedge.module import _Loader
from tests.guests.build import wat
from tests.guests.hostile import section

EXITS = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.const {code}))))"""
UNIVERSAL = 1
"""WasmEdge_CompilerOutputFormat_Wasm: the module, with its machine code in that section."""


@pytest.fixture(scope="module")
def section_of_42(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The section with the machine code of a module that exits with 42."""
    wasm, path = import_memories(wat(EXITS.format(code=42))), tmp_path_factory.mktemp("native") / "universal.wasm"
    with _CompilerConfig(QUICK, False) as config:
        library.WasmEdge_ConfigureCompilerSetOutputFormat(config.pointer, UNIVERSAL)
        compiler = library.WasmEdge_CompilerCreate(config.pointer)
        given = ffi.from_buffer("uint8_t[]", wasm)
        assert library.WasmEdge_CompilerCompileFromBuffer(compiler, given, len(wasm), bytes(path)) == 0
        library.WasmEdge_CompilerDelete(compiler)
    made = path.read_bytes()
    at = made.index(b"\x08wasmedge")
    # Behind its number and its size.
    return section(0, made[at:])


@pytest.fixture
def evil(section_of_42: bytes) -> bytes:
    return wat(EXITS.format(code=1)) + section_of_42


def test_it_is_refused_at_upload(evil: bytes) -> None:
    with pytest.raises(ModuleRefused, match="machine code") as refused:
        check_module(evil)
    assert refused.value.code == "module_native"


@pytest.mark.parametrize("compiled", [False, True], ids=["interpreted", "compiled"])
def test_it_is_not_run_where_it_comes_all_the_same(evil: bytes, tmp_path: Path, compiled: bool) -> None:
    (tmp_path / "evil.wasm").write_bytes(evil)
    sha256, manifest = hashlib.sha256(evil).hexdigest(), Manifest()
    if compiled:
        aot = compile_artifact(evil, tmp_path, QUICK)
        local = LocalFunction("f", 1, sha256, manifest, "", str(aot.path), aot.digest)
    else:
        local = LocalFunction("f", 1, sha256, manifest, "", wasm=str(tmp_path / "evil.wasm"))
    function = LoadedFunction.load(local)
    with pytest.raises(GuestFault, match=r"exit code 1\."):
        function.call(Request("GET"))


def test_a_loader_that_trusts_it_would_take_it_in_the_place_of_the_module(
    evil: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the one above would show nothing."""
    trusting = _Loader.__init__
    monkeypatch.setattr(_Loader, "__init__", lambda self, config, native: trusting(self, config, native=True))
    with pytest.raises(AssertionError, match="Regex pattern did not match"):
        test_it_is_not_run_where_it_comes_all_the_same(evil, tmp_path, False)


def test_a_body_behind_it_is_validated(section_of_42: bytes) -> None:
    # An i64 is left on the stack.
    whole = wat(EXITS.format(code=1))
    at = whole.index(b"\x0a\x08\x01\x06\x00\x41\x01\x10\x00\x0b")
    invalid = whole[:at] + section(10, b"\x01\x04\x00\x42\x00\x0b") + whole[at + 10 :]
    with Config(memory_pages=1) as config:
        for wasm in (invalid, invalid + section_of_42):
            with pytest.raises(LoadError, match="type mismatch"):
                Module.from_bytes(wasm, config)


@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00", b"\x88\x80\x80\x80\x00"])
@pytest.mark.parametrize("first", [True, False])
def test_the_section_is_seen_however_it_is_written(length: bytes, first: bool) -> None:
    wasm = wat(EXITS.format(code=1))
    brought = section(0, length + b"wasmedge" + b"anything")
    with pytest.raises(ModuleRefused, match="machine code"):
        detect(wasm[:8] + brought + wasm[8:] if first else wasm + brought)


@pytest.mark.parametrize("content", [b"", b"\x09", b"\x80", b"\x07wasmedg", b"\x09wasmedge2", b"\x02\xff\xff"])
def test_other_custom_sections_are_nobodys_business(content: bytes) -> None:
    detect(wat(EXITS.format(code=1)) + section(0, content))
