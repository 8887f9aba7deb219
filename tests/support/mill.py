"""Takes many modules through check, compile and run as nodes do: in forked children with the real ones' limits.

`python -m tests.support.mill CORPUS FOLDER` prints what became of each. It has one thread, as the zygote has. A child
takes many modules; one that dies of a module, or stands still over it, costs that module, and the next child goes on.
"""

import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from control.protocol.manifest import Manifest
from edge_runtime.guests import guest
from edge_runtime.guests.function_code import compile_artifact
from edge_runtime.ipc import frames
from edge_runtime.oneshot import check
from edge_runtime.wasmedge import QUICK
from edge_runtime.wasmedge.errors import WasmEdgeError

from .generated import Generated

ROOT = Path(__file__).resolve().parents[2]
STEP_LIMIT = 20.0
RUN_LIMIT = 0.25
"""Seconds of a processor that a call may take, in place of a manifest's."""
PATIENCE = 20.0
"""Seconds after which one is late that takes no processor."""
CHILD = 200
"""Modules that a child takes: what one leaves behind in it shows in the next ones."""

encode = msgspec.json.Encoder().encode


class End(Struct, frozen=True):
    """How a step ended for a module."""

    how: str
    """`ok`, `refused` (with a code), or what befell the child: `signal`, `exit`, `late`."""
    code: str = ""
    text: str = ""


class Fate(Struct):
    """What became of a module; the steps that it didn't get to are None."""

    checked: End
    compiled: End | None = None
    run: End | None = None
    interpreted: End | None = None


class Times(Struct):
    """Seconds of each step."""

    check: float
    compile: float
    run: float
    interpret: float


class Milled(Struct):
    """What became of each module, and how long it took."""

    fates: list[Fate]
    times: Times
    """Seconds of each step, of all modules."""


def mill(corpus: Path, folder: Path) -> Milled:
    """In a process of its own; `corpus` is a list of `Generated` in msgpack."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.mill", str(corpus), str(folder)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert ran.returncode == 0, f"the mill itself failed ({ran.returncode})"
    return msgspec.json.decode(ran.stdout, type=Milled)


def main(corpus: Path, folder: Path) -> Milled:
    """Check, compile, run and interpret each module of the corpus."""
    modules = msgspec.msgpack.decode(corpus.read_bytes(), type=list[Generated])
    guest.prepare()
    # What is written here need not outlast a power failure, and thousands of files would wait for the disk.
    os.fsync = lambda _: None
    files: dict[int, tuple[Path, str]] = {}
    spent = []

    def checked(index: int) -> End:
        try:
            found = check.check_module(modules[index].wasm)
        except check.ModuleRefused as refused:
            return End("refused", refused.code, str(refused))
        return End("ok", found["abi"])

    def compiled(index: int) -> End:
        try:
            made = compile_artifact(modules[index].wasm, folder, QUICK)
        except WasmEdgeError as error:
            return End("refused", "compile_failed", str(error))
        return End("ok", made.digest, str(made.path))

    def run(index: int) -> End:
        path, digest = files[index]
        return call(frames.LocalFunction("f", 1, "", manifest(index), "", str(path), digest))

    def interpreted(index: int) -> End:
        wasm = modules[index].wasm
        path = folder / f"{index}.wasm"
        path.write_bytes(wasm)
        return call(frames.LocalFunction("f", 1, hashlib.sha256(wasm).hexdigest(), manifest(index), "", wasm=str(path)))

    def manifest(index: int) -> Manifest:
        abi: Any = judged[index].code
        return Manifest(memory_pages=32, abi=abi, entry="run" if abi == "extism" else "")

    def call(local: frames.LocalFunction) -> End:
        try:
            function = guest.LoadedFunction.load(local)
        except WasmEdgeError as error:
            return End("refused", "function_unloadable", str(error))
        try:
            answer = function.call(guest.Request("POST", body=b"hello"))
        except guest.GuestFault as fault:
            return End("refused", fault.code, str(fault))
        finally:
            function.close()
        return End("ok", str(answer.status))

    def step(work: Callable[[int], End], indices: Sequence[int], limit: float, **more: Any) -> dict[int, End]:
        started = time.monotonic()
        ends = dict(through(work, indices, limit, **more))
        spent.append(time.monotonic() - started)
        return ends

    # Its CPU seconds are for one module; here it takes hundreds.
    judged = step(checked, range(len(modules)), STEP_LIMIT, prepare=check.limit)
    fates = [Fate(judged[index]) for index in range(len(modules))]
    good = [index for index, fate in enumerate(fates) if fate.checked.how == "ok"]
    for index, end in step(compiled, good, STEP_LIMIT).items():
        fates[index].compiled = end
        if end.how == "ok":
            files[index] = (Path(end.text), end.code)
    for index, end in step(run, sorted(files), RUN_LIMIT).items():
        fates[index].run = end
    # Those that have no end would only take their time again.
    ended = [index for index in sorted(files) if (end := fates[index].run) and end.how in ("ok", "refused")]
    for index, end in step(interpreted, ended, RUN_LIMIT * 4).items():
        fates[index].interpreted = end
    return Milled(fates, Times(*spent))


def through(
    work: Callable[[int], End], indices: Sequence[int], limit: float, prepare: Callable[[], None] | None = None
) -> Iterator[tuple[int, End]]:
    """Each index's end. A child says an end as soon as it has it, so the module that killed it is the next one."""
    left = list(indices)
    while left:
        mine = left[:CHILD]
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(work, mine, writing, prepare)
        os.close(writing)
        done = 0
        killed = -1
        """The module that was late."""
        used, since = 0.0, time.monotonic()
        pending = b""
        while True:
            ready, _, _ = select.select([reading], [], [], limit)
            if not ready:
                # On a busy machine it may not have run at all meanwhile.
                if _used(pid) - used < limit / 2 and time.monotonic() - since < PATIENCE:
                    continue
                os.kill(pid, signal.SIGKILL)
                killed = done
            piece = os.read(reading, 65_536)
            if not piece:
                break
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                yield mine[done], msgspec.json.decode(line, type=End)
                done += 1
            if killed < 0:
                used, since = _used(pid), time.monotonic()
        os.close(reading)
        _, status = os.waitpid(pid, 0)
        # One that said its end while it was being killed for it leaves the next one to the next child.
        if done < len(mine) and killed in (-1, done):
            yield mine[done], _died(status, killed >= 0)
            done += 1
        left = left[done:]


def _used(pid: int) -> float:
    """Seconds of a processor that a child has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _died(status: int, late: bool) -> End:
    if late:
        return End("late")
    if os.WIFSIGNALED(status):
        return End("signal", signal.Signals(os.WTERMSIG(status)).name)
    return End("exit", str(os.waitstatus_to_exitcode(status)))


def _child(work: Callable[[int], End], indices: list[int], writing: int, prepare: Callable[[], None] | None) -> None:
    code = 1
    try:
        if prepare is not None:
            prepare()
        for index in indices:
            os.write(writing, encode(work(index)) + b"\n")
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.stdout.buffer.write(encode(main(Path(sys.argv[1]), Path(sys.argv[2]))))
