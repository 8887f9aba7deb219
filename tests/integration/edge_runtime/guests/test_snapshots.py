"""Calls of snapshots, whose memory is an image that is mapped copy-on-write: each finds exactly the snapshot, whatever
the calls before it have done to it, and answers what wasmtime's instance of the whole module answers."""

import asyncio
import hashlib
import os
import random
import signal
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import orjson
import pytest

from edge_runtime.aot_cache import Damaged
from edge_runtime.children.function_cache import Functions
from edge_runtime.guests import function_code
from edge_runtime.guests.guest import LoadedFunction, Request
from edge_runtime.guests.host_functions import Guest
from edge_runtime.ipc import frames, request_head
from edge_runtime.native import library
from edge_runtime.wasmedge import PAGE, Program, instance
from edge_runtime.wasmedge.image import FIRST_LOOK
from edge_runtime.wasmedge.split import Split, split
from tests.guests.build import guest
from tests.support import by_wasmtime
from tests.support.both_ways import both_ways
from tests.support.edge import node, until
from tests.support.functions import split_local
from tests.support.snapshots import snapshot
from tests.support.worker_thread import WorkerThread, worker

CALLS = 400
TRAP, EXIT, GROW = 1, 2, 4
DRAW = random.Random(30)
FEW = snapshot(guest("snapshot_sum"), 9, [(5000, DRAW.randbytes(300_000)), (8 * PAGE, b"last")])
"""Of which many calls write every page."""
OTHER = snapshot(guest("snapshot_sum"), 70, [(5000, DRAW.randbytes(300_000)), (69 * PAGE, b"end")])
C = guest("snapshot")
MANIFEST = {"abi": "direct", "memory_pages": 300}
FUNCTIONS = {"few": (FEW, MANIFEST), "other": (OTHER, MANIFEST), "c": (C, MANIFEST)}


def parts(wasm: bytes) -> Split:
    made = split(wasm)
    assert made is not None
    return made


def body_of(name: str, mode: int, seed: int, count: int) -> bytes:
    """A call's body: `count` words or bytes are written, at places that `seed` decides."""
    return f"{mode} {seed} {count}".encode() if name == "c" else struct.pack("<III", mode, seed, count)


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    """What wasmtime's instances of the whole modules answer."""
    head = request_head.encode_head(
        0, 0, request_head.PLAIN, "POST", "", b"", [(b"host", b"a")], "/f", "", [], "127.0.0.1"
    )[request_head.BLOCK :]  # fmt: skip
    with by_wasmtime.apart() as pool:
        said = {
            name: pool.submit(by_wasmtime.handled, wasm, head + body_of(name, 0, 5, 9)).result()
            for name, (wasm, _) in FUNCTIONS.items()
        }
    return {name: answer[8 + int.from_bytes(answer[4:8], "little") :] for name, answer in said.items()}


def check_calls(run: WorkerThread, expected: dict[str, bytes], seed: int) -> None:
    """Make calls that differ: of all functions, small and large ones, that answer, trap and exit."""
    drawn = random.Random(seed)
    for _ in range(CALLS):
        name = drawn.choice(list(FUNCTIONS))
        mode = drawn.choice([0, 0, 0, TRAP, EXIT]) | (drawn.choice([0, GROW]) if name != "c" else 0)
        said = run.call(name, body_of(name, mode, drawn.getrandbits(32), drawn.choice([0, 1, 5, 40, 3000])))
        if mode & 3:
            assert run.fault(said)[0] == ("guest_trap" if mode & 3 == TRAP else "guest_exit")
        else:
            assert said.body == expected[name]


def test_each_call_finds_the_snapshot(tmp_path: Path, expected: dict[str, bytes]) -> None:
    with worker(tmp_path, FUNCTIONS, in_c=False) as run:
        check_calls(run, expected, 1)


@pytest.mark.never_retry
@pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}")
def test_each_call_finds_the_snapshot_in_c_too(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Beside a worker in Python, which has the same images mapped."""
    images = tmp_path / "aot"
    with both_ways(tmp_path, FUNCTIONS) as run:
        check_calls(run.in_c, expected, 2)
        # Failures are Python's to tell; but their calls run in C as the others do.
        assert len(run.in_c.ran) < 10
        check_calls(run.in_python, expected, 3)
        check_calls(run.in_c, expected, 4)
    made = [path for path in images.iterdir() if path.suffix == ".image"]
    assert len(made) == len(FUNCTIONS)
    for path in made:
        written = path.read_bytes()
        assert any(written == image_of(parts(wasm)) for wasm, _ in FUNCTIONS.values())


@pytest.mark.never_retry
async def test_each_call_finds_the_snapshot_on_a_node_whatever_ends_its_workers(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Several at a time, and workers are killed in the midst of them."""
    drawn, ended = random.Random(5), Counter[str]()
    modes = {TRAP: "guest_trap", EXIT: "guest_exit"}

    async def call(name: str, mode: int) -> None:
        body = body_of(name, mode | drawn.choice([0, GROW]), drawn.getrandbits(32), drawn.choice([0, 5, 40, 3000]))
        status, _, answer = await edge.call(name, body)
        if status == 200:
            assert (mode, answer) == (0, expected[name])
        code = "answer" if status == 200 else orjson.loads(answer)["code"]
        assert code in (modes.get(mode, "answer"), "worker_crashed", "circuit_open"), answer
        ended[code] += 1

    async with node(tmp_path / "state", workers=3) as edge:
        await edge.release({name: FUNCTIONS[name] for name in ("few", "other")})
        assert all(f.image for f in edge.front.pool.release.functions)
        for batch in range(CALLS // 8):
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(call(drawn.choice(["few", "other"]), drawn.choice([0, 0, 0, TRAP, EXIT])))
                if batch % 6 == 5:
                    os.kill(drawn.choice(sorted(edge.workers())), signal.SIGKILL)
            await until(lambda: len(edge.workers()) == 3)
    assert ended.total() == CALLS
    assert min(ended["answer"] / 2, ended["guest_trap"], ended["guest_exit"]) > CALLS / 16, ended


def image_of(made: Split) -> bytes:
    image = bytearray(made.pages * PAGE)
    for address, data in made.segments:
        image[address : address + len(data)] = data
    return bytes(image)


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[LoadedFunction]:
    made = LoadedFunction.load(split_local(parts(OTHER), tmp_path, **MANIFEST))
    yield made
    made.close()


def program_of(function: LoadedFunction) -> Program:
    assert isinstance(function.runner, Guest)
    return function.runner.program


def memory_of(program: Program) -> bytes:
    reserved = program._reserved
    assert reserved is not None
    return bytes(reserved.memories[0].window)


@pytest.mark.parametrize("counts", [[0], [1], [20_000], [3000, 0], [0] * 4 + [20_000] * 3, [20_000] * 4 + [1]])
def test_every_page_is_made_good_hot_or_not(loaded: LoadedFunction, counts: list[int]) -> None:
    """A guess about hot pages that turns out wrong costs time alone."""
    program, image = program_of(loaded), image_of(parts(OTHER))
    assert memory_of(program) == image
    for call in range(4 * FIRST_LOOK + 2):
        request = request_for(call, counts[call % len(counts)])
        loaded.call(request)
        assert memory_of(program) == image


def request_for(seed: int, count: int) -> Request:
    return Request("POST", "", "", [("host", "a")], body_of("other", GROW, seed, count))


def test_functions_of_an_engine_share_its_code(tmp_path: Path) -> None:
    first = split_local(parts(FEW), tmp_path, **MANIFEST)
    second = split_local(parts(OTHER), tmp_path, **MANIFEST)
    assert (first.code == second.code, first.image == second.image) == (True, False)
    one, two = LoadedFunction.load(first), LoadedFunction.load(second)
    assert program_of(one)._module is program_of(two)._module
    one.close()
    del one
    assert function_code.has_engine(*second.code)
    assert two.call(request_for(1, 1)).status == 200
    two.close()
    del two
    assert not function_code.has_engine(*second.code)


def test_what_memories_are_kept_is_limited_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count towards RLIMIT_DATA, although nobody writes to most of their pages."""
    monkeypatch.setattr(instance, "KEPT_BYTES", 100 * PAGE)
    small, large = (LoadedFunction.load(split_local(parts(wasm), tmp_path, **MANIFEST)) for wasm in (FEW, OTHER))
    other = LoadedFunction.load(split_local(parts(snapshot(OTHER, 71, [])), tmp_path, **MANIFEST))
    kept = [program_of(each) for each in (small, large, other)]
    assert [program._reserved is not None for program in kept] == [False, False, True]
    assert {each.call(request_for(1, 1)).status for each in (small, large, other, small)} == {200}
    for each in (small, large, other):
        each.close()


@pytest.mark.parametrize("damage", ["a byte", "too short", "too long", "gone", "a link", "the engine"])
def test_a_damaged_snapshot_is_a_failure_and_never_interpreted(tmp_path: Path, damage: str) -> None:
    made = split_local(parts(OTHER), tmp_path, **MANIFEST)
    (tmp_path / "whole.wasm").write_bytes(OTHER)
    sha256 = hashlib.sha256(OTHER).hexdigest()
    made = msgspec.structs.replace(made, wasm=str(tmp_path / "whole.wasm"), sha256=sha256)
    path = Path(made.aot if damage == "the engine" else made.image)
    whole = path.read_bytes()
    match damage:
        case "a byte" | "the engine":
            path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        case "too short":
            path.write_bytes(whole[:-1])
        case "too long":
            path.write_bytes(whole + b"\0")
        case "gone":
            path.unlink()
        case "a link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    functions = Functions(1 << 40)
    found = functions.load(functions.entry(made, {}))
    assert isinstance(found, frames.ChildFailure)
    assert (found.code, functions.damaged) == ("function_unloadable", sha256)
    path.unlink(missing_ok=True)
    path.write_bytes(whole)
    again = functions.load(functions.entry(made, {}))
    assert isinstance(again, LoadedFunction)
    assert functions.damaged == ""
    functions.keep([])


def test_the_digest_is_checked_before_each_mapping(tmp_path: Path) -> None:
    made = split_local(parts(OTHER), tmp_path, **MANIFEST)
    function = LoadedFunction.load(made)
    program = program_of(function)
    program.give_up()
    whole = Path(made.image).read_bytes()
    Path(made.image).write_bytes(b"x" + whole[1:])
    with pytest.raises(Damaged):
        function.call(request_for(1, 1))
    Path(made.image).write_bytes(whole)
    assert function.call(request_for(1, 1)).status == 200
    function.close()


def test_versions_that_differ_in_the_image_alone_are_two_functions(tmp_path: Path) -> None:
    functions = Functions(1 << 40)
    first, second = (functions.entry(split_local(parts(wasm), tmp_path, **MANIFEST), {}) for wasm in (FEW, OTHER))
    assert first is not second
