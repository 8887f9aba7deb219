"""Snapshots as builds make them: in an empty environment, behind a fence, and refused where one would not be sound."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from control.cli.project import snapshots
from control.cli.project.snapshots import Initialisation, SnapshotFailed
from edge_runtime.guests.invocation import Request
from edge_runtime.oneshot import snapshot
from edge_runtime.oneshot.snapshot import MadeSnapshot, SnapshotDone, SnapshotOrder
from tests.guests.build import CACHE, guest, wat
from tests.support.functions import function
from tests.unit.edge_runtime.guests.abi.test_snapshot import MANY, MODULE, Running, count, many

SECRET = "s3cret-of-this-machine"
WASI = {
    "random_get": "(param i32 i32) (result i32)",
    "environ_sizes_get": "(param i32 i32) (result i32)",
    "args_sizes_get": "(param i32 i32) (result i32)",
    "poll_oneoff": "(param i32 i32 i32 i32) (result i32)",
    "proc_exit": "(param i32)",
}
OWN = {
    "sql": "(param i32 i32) (result i32)",
    "http": "(param i32 i32) (result i32)",
    "result": "(param i32)",
}


def warming(body: str, *functions: str, data: str = "") -> bytes:
    """A module whose `warm` runs these instructions, with these imports."""
    of = {name: "skerry" if name in OWN else "wasi_snapshot_preview1" for name in functions}
    types = WASI | OWN
    imports = "".join([f'(import "{of[name]}" "{name}" (func ${name} {types[name]}))' for name in functions])
    return wat(
        f'(module {imports} (memory (export "memory") 1 9) (data (i32.const 100) "{data}")'
        f'(func $warm (export "warm") {body}) (func (export "anew")))'
    )


async def made(wasm: bytes, folder: Path, how: Initialisation, **more: object) -> bytes:
    """The snapshot of a module, by the program that builds run."""
    (folder / "in.wasm").write_bytes(wasm)
    out = folder / "out.wasm"
    await snapshots.made(folder / "in.wasm", out, how, project=folder, **more)  # type: ignore[arg-type]
    return out.read_bytes()


@pytest.mark.usefixtures("programs_by_exec")
@pytest.mark.parametrize("compiled", [False, True])
async def test_what_an_initialiser_finds_and_what_a_call_has(
    *, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", SECRET)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    how = Initialisation("warm", "anew", stdin=b"given", compiled=compiled)
    wasm = await made(guest("remembers"), tmp_path, how)
    assert await made(guest("remembers"), tmp_path, how) == wasm
    assert await made(guest("remembers"), tmp_path, Initialisation("warm", "anew", stdin=b"other")) != wasm
    loaded = function(wasm, CACHE, config={"WORD": "call's"}, abi="direct")
    answers = [loaded.call(Request(method="GET", path="/")).body.decode() for _ in range(2)]
    pattern = (
        r"stdin given, 0 arguments, 0 variables, file refused, year 0, clock begins; big 7; call 1; "
        r"built ([0-9a-f]+) ([0-9a-f]+); call's ([0-9a-f]+)"
    )
    found = [re.fullmatch(pattern, answer) for answer in answers]
    assert found[0], answers
    assert found[1], answers
    assert found[0].groups()[:2] == found[1].groups()[:2]
    assert len({*found[0].groups(), *found[1].groups()}) == 4
    assert count(wasm) < 20
    assert len(list((tmp_path / "skerry").glob("aot/*.so"))) == compiled


@pytest.mark.parametrize(
    ("wasm", "how", "why"),
    [
        *[
            (
                warming(f"(drop (call ${name} (i32.const 0) (i32.const 8)))", name),
                Initialisation("warm"),
                f"Its warm {did} ({name}), and every call would have the same: leave that to the calls, or name as "
                "`renew` an export that does it anew.",
            )
            for name, did in [
                ("random_get", "drew random numbers"),
                ("environ_sizes_get", "read variables of the environment"),
                ("args_sizes_get", "read its arguments"),
            ]
        ],
        (
            warming(
                "(drop (call $poll_oneoff (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))", "poll_oneoff"
            ),
            Initialisation("warm", "anew"),
            "Its warm waits (poll_oneoff), and no time passes while it runs.",
        ),
        *[
            (
                warming(call, name),
                Initialisation("warm", "anew"),
                f"Its warm called skerry.{name}, and only a call may: it runs once, when the function is built.",
            )
            for name, call in [
                ("sql", "(drop (call $sql (i32.const 0) (i32.const 8)))"),
                ("http", "(drop (call $http (i32.const 0) (i32.const 8)))"),
                ("result", "(call $result (i32.const 0))"),
            ]
        ],
        (
            warming("(call $proc_exit (i32.const 3))", "proc_exit"),
            Initialisation("warm"),
            "Its warm ended the program, with the exit code 3.",
        ),
        (warming("unreachable"), Initialisation("warm"), "Its warm failed: unreachable"),
        (warming("(loop (br 0))"), Initialisation("warm", limit=0.5), "Its warm has not ended after 0.5 s."),
        (warming(""), Initialisation("cold"), "It exports no function cold (it exports warm, anew)."),
        (warming("", data=f"x{SECRET}x"), Initialisation("warm"), "the value of the variable API_TOKEN in it"),
        (warming("", data="of-the-function"), Initialisation("warm"), "the secret SIGNING in it"),
        (warming("", data="/home/somebody/x"), Initialisation("warm"), "the path of your home folder in it"),
        (b"#!/bin/sh", Initialisation("warm"), "It is no module that nodes can run"),
    ],
)
async def test_where_there_is_no_snapshot_it_is_said_why(
    wasm: bytes, how: Initialisation, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", SECRET)
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(SnapshotFailed) as failed:
        await made(wasm, tmp_path, how, secrets={"SIGNING": "of-the-function"})
    assert why in str(failed.value)
    assert SECRET not in str(failed.value)
    assert [file.name for file in tmp_path.iterdir()] == ["in.wasm"]


@pytest.mark.parametrize(
    ("attempt", "end"),
    [(Path("/etc/passwd").read_bytes, "PermissionError"), (socket.socket, "The process .* ended with signal SIGSYS.")],
)
def test_it_runs_behind_the_fence(attempt: Callable[[], object], end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*_: object) -> MadeSnapshot:
        try:
            attempt()
        except OSError as refused:
            return MadeSnapshot(SnapshotDone(message=type(refused).__name__))
        return MadeSnapshot(SnapshotDone())

    monkeypatch.setattr(snapshot, "make", tried)
    order = SnapshotOrder("in.wasm", "out.wasm", "warm")
    assert re.fullmatch(end, snapshot.carried_out(warming(""), order).done.message)


async def test_what_only_this_machine_has_may_be_allowed(tmp_path: Path) -> None:
    wasm = warming("", data=f"{tmp_path}/main.c")
    with pytest.raises(
        SnapshotFailed, match=r'the path of the project\'s folder in it.*snapshot\.allow = \["PROJECT"\]'
    ):
        await made(wasm, tmp_path, Initialisation("warm"))
    allowed = await made(wasm, tmp_path, Initialisation("warm", allow=("PROJECT",)))
    assert str(tmp_path).encode() in allowed


async def test_what_an_initialiser_logs(tmp_path: Path) -> None:
    wasm = guest("remembers")
    with pytest.raises(SnapshotFailed, match=r"read its arguments .*\nIt logged:\na line in the log$"):
        await made(wasm, tmp_path, Initialisation("warm"))
    how = Initialisation("warm", "anew")
    log = await snapshots.made(tmp_path / "in.wasm", tmp_path / "out.wasm", how, project=tmp_path)
    assert log == "a line in the log\n"


@pytest.mark.parametrize(("init", "counter"), [("init", 111), ("_initialize", 110)])
async def test_a_librarys_own_initialiser_comes_first_or_is_the_one(init: str, counter: int, tmp_path: Path) -> None:
    wasm = await made(wat(MODULE), tmp_path, Initialisation(init))
    assert Running(wasm).call("handle") == counter


@pytest.mark.parametrize(("fewer", "left"), [(0, 1), (1, MANY - 1)])
async def test_another_programs_many_segments_become_few(fewer: int, left: int, tmp_path: Path) -> None:
    wasm = many([], fewer=fewer)
    module = tmp_path / "f.wasm"
    module.write_bytes(wasm)
    await snapshots.joined(module)
    assert count(module.read_bytes()) == left
    assert Running(module.read_bytes()).memory() == Running(wasm).memory()
