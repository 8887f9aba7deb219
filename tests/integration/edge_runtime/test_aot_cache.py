"""AOT files: private, whole or not there, and never loaded when they are not what was compiled."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edge_runtime
from edge_runtime import aot_cache
from edge_runtime.aot_cache import BEST, QUICK, Damaged, find, remove_others, verify
from edge_runtime.guests.guest import LoadedFunction, Request
from edge_runtime.wasmedge import CompileError, LoadError, aot_compile, compile_module
from edge_runtime.wasmedge.c_api import library
from tests.guests.build import guest
from tests.guests.hostile import module
from tests.support.deadlines import scaled
from tests.support.functions import local

ECHO = guest("echo")
SHA = hashlib.sha256(ECHO).hexdigest()


def test_a_compilation_is_private_found_again_and_leaves_nothing_else(tmp_path):
    before = os.umask(0)
    try:
        made = compile_module(ECHO, tmp_path, QUICK)
    finally:
        os.umask(before)
    assert made.digest == hashlib.sha256(made.path.read_bytes()).hexdigest()
    beside = made.path.with_suffix(".sha256")
    assert sorted(tmp_path.iterdir()) == sorted([made.path, beside])
    for path in (made.path, beside):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert find(tmp_path, SHA, QUICK) == made
    assert find(tmp_path, SHA, BEST) is None
    assert find(tmp_path, "0" * 64, QUICK) is None
    verify(made.path, made.digest)


@pytest.mark.parametrize("suffix", [".so", ".sha256"])
def test_a_folder_in_the_place_of_what_was_compiled_is_not_taken(tmp_path, suffix):
    work = aot_cache.make_work_folder(tmp_path)
    name = aot_cache.key(SHA, QUICK)
    for made in (".so", ".sha256"):
        (work / f"{name}{made}").write_bytes(b"made")
    (work / f"{name}{suffix}").unlink()
    (work / f"{name}{suffix}").mkdir()
    with pytest.raises(OSError, match="what the compiler made is no file"):
        aot_cache.install(work, tmp_path, SHA, QUICK)
    assert list(tmp_path.iterdir()) == [work]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_runs_and_is_apart(tmp_path, level):
    made = compile_module(ECHO, tmp_path, level)
    assert find(tmp_path, SHA, level) == made
    function = LoadedFunction.load(local(made))
    assert function.call(Request("POST", body=b"hello")).body == b"hello"


def test_the_name_depends_on_all_that_the_code_does(monkeypatch):
    names = {aot_cache.key(sha, level) for sha in (SHA, "0" * 64) for level in aot_cache.LEVELS}
    assert len(names) == 8
    first = aot_cache.key(SHA, QUICK)
    monkeypatch.setattr(aot_cache, "WASMEDGE", "0.99.0")
    second = aot_cache.key(SHA, QUICK)
    monkeypatch.setattr(aot_cache, "_processor", lambda: "x86_64 fpu")
    assert len({first, second, aot_cache.key(SHA, QUICK)}) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "no digest", "other digest"])
def test_a_damaged_file_is_no_file(tmp_path, damage):
    made = compile_module(ECHO, tmp_path, QUICK)
    content, beside = made.path.read_bytes(), made.path.with_suffix(".sha256")
    match damage:
        case "flip":
            changed = bytearray(content)
            changed[len(changed) // 2] ^= 1
            made.path.write_bytes(changed)
        case "cut":
            made.path.write_bytes(content[:-1])
        case "empty":
            made.path.write_bytes(b"")
        case "gone":
            made.path.unlink()
        case "no digest":
            beside.unlink()
        case "other digest":
            beside.write_text("0" * 64)
    assert find(tmp_path, SHA, QUICK) is None
    if damage in ("flip", "cut", "empty"):
        with pytest.raises(Damaged, match="and must have"):
            verify(made.path, made.digest)
        with pytest.raises(Damaged):
            LoadedFunction.load(local(made))
    again = compile_module(ECHO, tmp_path, QUICK)
    assert find(tmp_path, SHA, QUICK) == again


@pytest.mark.parametrize("wasm", [b"", b"nonsense", ECHO[:1000], b"\0asm\1\0\0\0\xff"])
def test_what_is_no_module_is_refused_and_leaves_nothing(tmp_path, wasm):
    with pytest.raises((CompileError, LoadError)):
        compile_module(wasm, tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


class Library:
    """WasmEdge's, whose compiler does `after` once it has compiled, before it returns."""

    def __init__(self, after):
        self._after = after

    def WasmEdge_CompilerCompileFromBuffer(self, *given):
        return self._after(library.WasmEdge_CompilerCompileFromBuffer(*given))

    def __getattr__(self, name):
        return getattr(library, name)


def test_code_is_told_of_once_it_is_linked(tmp_path, monkeypatch):
    """WasmEdge still frees its memory then."""
    told, waited = threading.Event(), []
    given = []

    def frees(result):
        waited.append(told.wait(scaled(60)))
        return result

    def made(aot):
        # It is whole, and is found.
        assert find(tmp_path, SHA, QUICK) == aot
        given.append(aot)
        told.set()

    monkeypatch.setattr(aot_compile, "library", Library(frees))
    returned = compile_module(ECHO, tmp_path, QUICK, made=made)
    assert waited == [True]
    assert given == [returned]
    assert LoadedFunction.load(local(returned)).call(Request("POST", body=b"hello")).body == b"hello"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".sha256", ".so"]


def test_a_compiler_that_fails_after_all_is_heard(tmp_path, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(aot_compile, "library", Library(lambda _: told.wait(scaled(60)) and 1))
    with pytest.raises(CompileError):
        compile_module(ECHO, tmp_path, QUICK, made=lambda _: told.set())
    assert told.is_set()


def test_what_hinders_the_taking_of_linked_code_is_raised(tmp_path, monkeypatch):
    raised = threading.Event()

    def made(_):
        raised.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(aot_compile, "library", Library(lambda result: raised.wait(scaled(60)) and result))
    with pytest.raises(OSError, match="No space left"):
        compile_module(ECHO, tmp_path, QUICK, made=made)


@pytest.mark.parametrize("wasm", [b"", b"nonsense", ECHO[:1000], b"\0asm\1\0\0\0\xff"])
def test_what_cannot_be_compiled_is_never_told_of(tmp_path, wasm):
    told = []
    with pytest.raises((CompileError, LoadError)):
        compile_module(wasm, tmp_path, QUICK, made=told.append)
    assert told == []


def test_code_is_linked_once_its_object_file_is_gone(tmp_path):
    """Where files can't be mapped, lld writes to the name itself."""
    code, made_of = tmp_path / "module.so", tmp_path / "module.0123456789.o"
    assert not aot_compile.is_linked(code)
    made_of.touch()
    assert not aot_compile.is_linked(code)
    code.write_bytes(b"half")
    assert not aot_compile.is_linked(code)
    made_of.unlink()
    assert aot_compile.is_linked(code)


def test_an_unknown_level_and_a_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="level 9"):
        compile_module(ECHO, tmp_path, 9)
    with pytest.raises(OSError, match="nowhere"):
        compile_module(ECHO, tmp_path / "nowhere", QUICK)


def test_a_killed_compilation_leaves_what_the_next_one_removes(tmp_path):
    code = f"""
import sys
from pathlib import Path
from edge_runtime.wasmedge import compile_module
compile_module(Path({str(tmp_path / "slow.wasm")!r}).read_bytes(), Path({str(tmp_path / "aot")!r}), 3)
"""
    (tmp_path / "aot").mkdir()
    # It takes ten seconds, so that it isn't done before it is seen and killed.
    (tmp_path / "slow.wasm").write_bytes(module(functions=100_000, bodies=[b"\0\x0b"] * 100_000))
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(edge_runtime.__file__).parents[1])
    deadline = time.monotonic() + scaled(60)
    while not list((tmp_path / "aot").glob(".compile-*")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [path.name.split("-")[0] for path in (tmp_path / "aot").iterdir()] == [".compile"]
    made = compile_module(ECHO, tmp_path / "aot", QUICK)
    assert sorted(path.suffix for path in (tmp_path / "aot").iterdir()) == [".sha256", ".so"]
    assert find(tmp_path / "aot", SHA, QUICK) == made


def test_files_of_other_artifacts_are_removed(tmp_path: Path) -> None:
    kept = compile_module(ECHO, tmp_path, QUICK)
    for name in (f"{'0' * 64}.so", f"{'0' * 64}.sha256", "index.json"):
        (tmp_path / name).write_bytes(b"")
    remove_others(tmp_path, {SHA})
    assert {path.name for path in tmp_path.iterdir()} == {kept.path.name, f"{kept.path.stem}.sha256", "index.json"}
    remove_others(tmp_path, set())
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
