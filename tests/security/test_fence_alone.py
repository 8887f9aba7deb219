"""What a check of an upload, and a call without a node, could still do if what they read or run had taken them over."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from control.protocol.manifest import Manifest
from edge_runtime.guests.guest import Request
from edge_runtime.oneshot.call_messages import FreshCall, FreshCalls, SingleCallRequest
from tests.guests.build import guest
from tests.support.deadlines import scaled
from tests.support.programs import command

ROOT = Path(__file__).parents[2]
SCHEMA = orjson.dumps({"sql": "CREATE TABLE a (x)"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "module.wasm"
    path.write_bytes(guest("echo"))
    return path


def taken(
    arguments: list[str], stdin: bytes, kind: str, tries: list[tuple[Any, ...]], start: tuple[str, ...] = ("-m",)
) -> list[str]:
    """What it was told of each try; the last is the signal that ended it, where one did."""
    plan = {"kind": kind, "tries": [[what, list(given)] for what, *given in tries]}
    done = subprocess.run(
        [sys.executable, *start, "tests.support.taken_alone", *arguments],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "SKERRY_TAKEN_OVER": json.dumps(plan)},
        timeout=scaled(60),
        check=False,
    )
    told = [line.rpartition(": ")[2] for line in done.stderr.decode().splitlines() if line.startswith("TRIED ")]
    # That of a child is told otherwise: by no answer.
    return [*told, signal.Signals(-done.returncode).name] if done.returncode < 0 else told


def asked(file: Path, cache: Path | None = None, database: Path | None = None) -> bytes:
    manifest = Manifest(sql="write" if database else "none")
    return msgspec.json.encode(
        SingleCallRequest(str(file), manifest, Request("GET"), str(cache or ""), str(database or ""))
    )


TCP = ("connect", socket.AF_INET, ["127.0.0.1", 9])
PROCESSES: list[tuple[Any, ...]] = [("spawn", "/bin/sh"), ("fork",), ("kill", os.getpid(), 0)]


@pytest.mark.parametrize(
    ("program", "stdin"),
    [(["check", "module"], b""), (["check", "schema"], SCHEMA), (["fresh"], None)],
    ids=["module", "schema", "skerry test"],
)
def test_a_check_opens_nothing(file: Path, program: list[str], stdin: bytes | None) -> None:
    arguments = [*program, str(file)] if stdin == b"" else program
    if stdin is None:
        calls = [FreshCall(str(file), "echo", {}, "GET", "/")]
        stdin = msgspec.json.encode(FreshCalls(calls, [], os.getpid()))
    tries = [
        *(("open", str(path), os.O_RDONLY) for path in ("/etc/passwd", file, "/proc/self/environ", "/dev/urandom")),
        ("open", str(file.with_name("new")), os.O_WRONLY | os.O_CREAT),
        ("rename", str(file), str(file.with_name("other"))),
        *PROCESSES,
        ("thread",),
    ]
    found = taken(arguments, stdin, "check", tries)
    assert len(found) == len(tries)
    assert set(found) <= {"EPERM", "EACCES", "EAGAIN"}, dict(zip(tries, found, strict=True))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("what", [TCP, ("shell", "/bin/sh")], ids=["connect", "exec"])
def test_what_ends_a_check(file: Path, what: tuple[Any, ...]) -> None:
    assert taken(["check", "module", str(file)], b"", "check", [what]) == ["SIGSYS"]
    assert taken(["check", "schema"], SCHEMA, "check", [what, ("fork",)]) == []


def test_a_call_opens_its_module_and_its_database(file: Path, tmp_path: Path) -> None:
    database = tmp_path / "own.db"
    sqlite3.connect(database).close()
    tries = [
        ("open", str(file), os.O_RDONLY),
        ("open", str(database), os.O_RDWR),
        ("open", f"{database}-journal", os.O_RDWR | os.O_CREAT),
        ("open", str(file), os.O_RDWR),
        *(("open", str(path), os.O_RDONLY) for path in ("/etc/passwd", "/proc/self/environ", tmp_path, "/")),
        ("open", str(tmp_path / "new"), os.O_WRONLY | os.O_CREAT),
        ("rename", str(database), str(tmp_path / "other")),
        ("symlink", "/etc/passwd", str(tmp_path / "link")),
        *PROCESSES,
        ("thread",),
    ]
    found = taken(["once"], asked(file, database=database), "worker", tries)
    assert found[:3] == ["worked"] * 3
    assert len(found) == len(tries)
    assert set(found[3:]) <= {"EPERM", "EACCES", "EAGAIN"}, dict(zip(tries, found, strict=True))


@pytest.mark.parametrize("what", [TCP, ("shell", "/bin/sh")], ids=["connect", "exec"])
def test_what_ends_a_call(file: Path, what: tuple[Any, ...]) -> None:
    assert taken(["once"], asked(file), "worker", [what]) == ["SIGSYS"]


def test_its_compiler_writes_what_it_compiles_and_nothing_else(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "other.so").write_bytes(b"code")
    tries = [
        *(("open", str(path), os.O_RDONLY) for path in ("/etc/passwd", file, cache / "other.so")),
        *(
            ("open", str(path), os.O_WRONLY | os.O_CREAT)
            for path in (cache / "other.so", cache / "new", tmp_path / "n")
        ),
        ("rename", str(cache / "other.so"), str(cache / "more.so")),
        *PROCESSES,
    ]
    found = taken(["once"], asked(file, cache=cache), "compiler", tries)
    assert len(found) == len(tries)
    assert set(found) <= {"EPERM", "EACCES", "EAGAIN"}, dict(zip(tries, found, strict=True))
    assert taken(["once"], asked(file, cache=cache), "compiler", [TCP]) == ["SIGSYS"]
    assert [path.name for path in cache.iterdir()] == ["other.so"]


WITHOUT = """
import runpy, sys
from edge_runtime.sandbox import libseccomp
without = libseccomp.Filter(libseccomp.ALLOW)
without.add([libseccomp.Rule("landlock_create_ruleset", action=libseccomp.fail(38))])
without.load()
program, *sys.argv = sys.argv[1:]
runpy.run_module(program, run_name="__main__")
"""
"""A program on a kernel without Landlock."""


async def test_on_a_kernel_without_landlock(file: Path, tmp_path: Path) -> None:
    """A check goes on and says it; a call goes on only if it is told to."""

    def run(*arguments: str, stdin: bytes = b"") -> tuple[Any, str]:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, *arguments],
            input=stdin,
            capture_output=True,
            cwd=ROOT,
            timeout=scaled(60),
            check=False,
        )
        return orjson.loads(done.stdout.splitlines()[-1]), done.stderr.decode()

    for arguments, stdin in ((["module", str(file)], b""), (["schema"], SCHEMA)):
        answer, _ = run("edge_runtime.oneshot.check", "check", *arguments, stdin=stdin)
        assert answer["ok"]
        assert [piece.split(":")[0] for piece in answer["unfenced"]] == ["Landlock"]
    # By seccomp alone it can't do more.
    opening = [("open", str(path), os.O_RDONLY) for path in ("/etc/passwd", file)]
    refused = taken(["", "check", "module", str(file)], b"", "check", opening, ("-c", WITHOUT))
    assert refused == ["EPERM"] * 2
    told, _ = run("edge_runtime.oneshot.single_call", "once", stdin=asked(file))
    assert told["code"] == "fence_lacking"
    assert "--fence partial" in told["message"]
    partly = msgspec.structs.replace(msgspec.json.decode(asked(file), type=SingleCallRequest), fence="partial")
    told, warned = run("edge_runtime.oneshot.single_call", "once", stdin=msgspec.json.encode(partly))
    assert (told["status"], told.get("code")) == (200, None)
    assert warned.startswith("Warning: the function runs without a part of its fence: Landlock")
    # The setting of nodes holds for it too.
    done = await command("edge_runtime.cli.main", "call", file, "--interpret", SKERRY_EDGE_FENCE="nonsense")
    assert done.status == 2
