"""How a call by `skerry-edge call` ends without an answer: by a trap, its time limit, or with the command itself."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import orjson
import pytest

from tests.guests.build import guest, wat
from tests.support.deadlines import scaled
from tests.support.edge import until
from tests.support.programs import Done


@pytest.mark.parametrize(("name", "code"), [("divide", "guest_trap"), ("overflow", "worker_crashed")])
async def test_a_fault_is_told_and_the_status_is_1(call, name, code):
    done = await call(guest(name))
    assert (done.status, done.out) == (1, b"")
    assert code in done.err


async def test_a_call_has_its_time_limit(call):
    done = await call(guest("loop"), "--time-limit", "300ms", "--json")
    assert done.status == 1
    told = orjson.loads(done.out)
    assert (told["status"], told["error"]["code"]) == (504, "time_limit")


def runs_fenced(children: Path, found: list[str]) -> bool:
    """Tell whether a child runs the guest: it has entered its fence. Its id is put into `found`."""
    found[:] = children.read_text().split()
    return bool(found) and "Seccomp:\t2" in Path(f"/proc/{found[0]}/status").read_text()


@pytest.mark.usefixtures("programs_by_exec")
async def test_nothing_runs_on_when_the_command_is_killed(tmp_path):
    file = tmp_path / "module.wasm"
    file.write_bytes(guest("loop"))
    arguments = ("-m", "edge_runtime.cli.main", "call", str(file), "--interpret", "--time-limit", "60s")
    command = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    found: list[str] = []
    await until(lambda: runs_fenced(children, found))
    command.kill()
    await command.wait()
    await until(lambda: not Path(f"/proc/{found[0]}").exists())


@pytest.mark.usefixtures("programs_by_exec")
async def test_nothing_runs_on_when_the_command_is_interrupted(tmp_path):
    """By Ctrl-C, or by a program that knows the command alone; and nothing but its end is told."""
    file = tmp_path / "module.wasm"
    file.write_bytes(guest("loop"))
    arguments = ("-m", "edge_runtime.cli.main", "call", str(file), "--interpret", "--time-limit", "60s")
    for interrupt in (os.killpg, os.kill):
        command = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
        found: list[str] = []
        await until(lambda children=children, found=found: runs_fenced(children, found))
        interrupt(command.pid, signal.SIGINT)
        assert command.stderr is not None
        assert (await asyncio.wait_for(command.stderr.read(), scaled(30))).strip() == b"Aborted!"
        assert await command.wait() == 1
        assert not Path(f"/proc/{found[0]}").exists()


def trapping(names: bool, trap: str = "unreachable") -> bytes:
    """A guest whose function 2 traps, called by another."""
    inner = "$take_order" if names else ""
    call = "(call $take_order)" if names else "(call 2)"
    return wat(f"""
(module
  (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
  (memory (export "memory") 1)
  (func {inner} (drop (i32.const 7)) {trap})
  (func (export "_start") {call}))
""")


@pytest.mark.parametrize("how", [(), ("--interpret",)])
@pytest.mark.parametrize(
    ("trap", "why"),
    [
        ("unreachable", "unreachable (0x40a)"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "divide by zero (0x404)"),
    ],
)
async def test_a_trap_says_in_which_function_it_was(call, how, trap, why):
    done = await call(trapping(names=True, trap=trap), "--json", *how)
    told = orjson.loads(done.out)["error"]
    assert told["code"] == "guest_trap"
    assert why in told["message"]
    assert told["message"].endswith(" It was in function 2 (take_order) of the module.")
    done = await call(trapping(names=False, trap=trap), *how)
    assert b"It was in function 2 of the module. [guest_trap]" in done.err.encode()


async def test_a_trap_of_a_plugin_says_in_which_function_it_was(call):
    done = await call(guest("plugin"), "--path", "/trap", "--json")
    told = orjson.loads(done.out)["error"]
    assert told["code"] == "guest_trap"
    assert " It was in function " in told["message"]
    assert "(trap)" in told["message"]


@pytest.mark.parametrize("how", [(), ("--interpret",)])
async def test_a_call_that_is_ended_shows_its_log(call, how):
    log = "before it hangs"
    text = "".join(f"\\{byte:02x}" for byte in f"<4>{log}\n".encode())
    looping = wat(f"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 1000) "{text}")
  (func (export "_start")
    (i32.store (i32.const 100) (i32.const 1000)) (i32.store (i32.const 104) (i32.const {len(log) + 4}))
    (drop (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200)))
    (loop $again (br $again))))
""")

    async def ended(*more: str) -> Done:
        # A guest that had no processor until its end is given more time.
        for limit in ("300ms", "3s", "20s"):
            done = await call(looping, "--time-limit", limit, *more, *how)
            if "it hangs" in done.err + done.out.decode():
                break
        return done

    done = await ended()
    assert done.status == 1
    assert done.err.splitlines()[0] == f"warning: {log}"
    assert "[time_limit]" in done.err
    done = await ended("--secret", "KEY=before", "--json")
    assert orjson.loads(done.out)["log"] == "warning: [secret KEY] it hangs\n"
