"""`python -m edge_runtime.oneshot.check module`: the child that judges an upload."""

import hashlib
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import edge_runtime
from tests.guests.build import example, guest, wat
from tests.support.deadlines import scaled

# What it imports before its fence is all that it has behind it.
pytestmark = pytest.mark.usefixtures("programs_by_exec")


def check(*arguments):
    """Its exit code and its answer."""
    ran = subprocess.run(
        [sys.executable, "-m", "edge_runtime.oneshot.check", *map(str, arguments)],
        capture_output=True,
        cwd=Path(edge_runtime.__file__).parents[1],
        timeout=scaled(60),
    )
    return ran.returncode, orjson.loads(ran.stdout) if ran.stdout else ran.stderr.decode()


@pytest.fixture
def file(tmp_path):
    def written(wasm):
        path = tmp_path / "module.wasm"
        path.write_bytes(wasm)
        return path

    return written


def test_a_good_module(file):
    wasm = example("hello")
    assert check("module", file(wasm)) == (
        0,
        {
            "ok": True,
            "size": len(wasm),
            "sha256": hashlib.sha256(wasm).hexdigest(),
            "abi": "wagi",
            "memory_pages": 2,
            "memory_maximum": None,
            "sql": True,
            "start": False,
        },
    )


@pytest.mark.parametrize(
    ("wasm", "code"),
    [
        (b"#!/bin/sh", "module_source"),
        (wat("(component)"), "module_component"),
        (wat('(module (memory (export "memory") 1))'), "abi_unknown"),
        (
            wat('(module (import "a" "b" (func)) (memory (export "memory") 1) (func (export "_start")))'),
            "imports_unknown",
        ),
        (wat('(module (func (export "_start")))'), "memory_missing"),
    ],
)
def test_refusals(file, wasm, code):
    status, answer = check("module", file(wasm))
    assert status == 0
    assert answer["ok"] is False
    assert answer["code"] == code
    assert answer["message"]


def test_an_invalid_body_is_found_by_wasmedge(file):
    wasm = bytearray(guest("trap"))
    wasm[-2] = 0x1A  # drop, of an empty stack
    status, answer = check("module", file(bytes(wasm)))
    assert (status, answer["code"]) == (0, "module_invalid")
    assert "WasmEdge finds it invalid" in answer["message"]


def test_a_proposal_that_wasmedge_does_not_run_is_refused(file):
    tail_call = wat('(module (memory (export "memory") 1) (func $f (return_call $f)) (func (export "_start")))')
    status, answer = check("module", file(tail_call))
    assert (status, answer["code"]) == (0, "module_invalid")


def test_limits(file):
    path = file(guest("echo"))
    size = path.stat().st_size
    assert check("module", path, "--size-limit", size - 1)[1]["code"] == "module_too_large"
    assert check("module", path, "--size-limit", size)[1]["ok"]
    assert check("module", path, "--memory-pages", 1)[1]["code"] == "memory_above_limit"


def test_a_wrong_call_is_no_verdict(tmp_path):
    for arguments in ([], ["module"], ["nonsense"], ["module", tmp_path / "nowhere"]):
        status, answer = check(*arguments)
        assert status != 0
        assert "ok" not in answer


def test_it_limits_and_seals_itself(file):
    code = """
import resource, sys
from edge_runtime.oneshot import check
from edge_runtime.sandbox import fence
def seal(kind, *_):
    print("SEALED", kind)
    for kind in ("CPU", "FSIZE", "DATA", "CORE", "AS"):
        print(kind, *resource.getrlimit(getattr(resource, f"RLIMIT_{kind}")))
fence.seal = seal
check.main(["module", sys.argv[1]])
"""
    root = Path(edge_runtime.__file__).parents[1]
    program = [sys.executable, "-c", code, str(file(guest("echo")))]
    ran = subprocess.run(program, capture_output=True, text=True, cwd=root, timeout=scaled(60))
    told = {line.split()[0]: line.split()[1:] for line in ran.stdout.splitlines()}
    assert told["SEALED"] == ["check"]
    # Lower than what the fence allows to every process.
    assert int(told["CPU"][1]) <= 60
    assert 0 < int(told["FSIZE"][1]) <= 1 << 30
    assert 0 < int(told["DATA"][1]) <= 4 << 30
    assert told["CORE"] == ["0", "0"]
    assert told["AS"] == ["-1", "-1"], "a guest could leave its sandbox"
