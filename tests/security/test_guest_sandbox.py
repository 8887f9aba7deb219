"""What a guest must not reach. Each hazard in a process of its own, since a hole could take the process with it."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edge_runtime
from edge_runtime.guests.guest import CallLimits, GuestFault, Request
from edge_runtime.wasmedge import QUICK, compile_module
from tests.guests.build import guest, wat
from tests.support.deadlines import scaled
from tests.support.functions import function

ROOT = Path(edge_runtime.__file__).parents[1]

RUN = """
import resource, sys
from control.protocol.manifest import Manifest
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.guests.guest import GuestFault, LoadedFunction, Request, prepare
from edge_runtime.wasmedge import Unsafe
{before}
try:
    prepare()
    function = LoadedFunction.load(LocalFunction("f", 1, "", Manifest(), "", sys.argv[1], sys.argv[2]))
    {during}
    print("answered", function.call(Request("POST", body=b"x")).status)
except (Unsafe, GuestFault) as error:
    print(type(error).__name__, error)
"""


def run(aot, before="", during="pass", shell=""):
    code = RUN.format(before=before, during=during)
    ran = subprocess.run(
        ["/bin/sh", "-c", f'{shell}exec "$@"', "sh", sys.executable, "-c", code, str(aot.path), aot.digest],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=scaled(60),
    )
    return ran.returncode, ran.stdout.strip() or ran.stderr


@pytest.fixture(scope="module")
def aot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aot")
    return lambda wasm: compile_module(wasm, folder, QUICK)


@pytest.fixture(scope="module")
def echo(aot):
    return aot(guest("echo"))


def test_without_limits_it_answers(echo):
    assert run(echo) == (0, "answered 200")


LIMITED = "resource.setrlimit(resource.RLIMIT_AS, ({soft}, {hard}))"
LIMITS = [(soft << shift, hard) for soft, shift in ((8, 30), (64, 30), (1, 46)) for hard in (-1, 1 << 46)]
EACH = f"""
import os
for soft, hard in {LIMITS}:
    if not os.fork():
        {LIMITED.format(soft="soft", hard="hard")}
        break
    assert os.wait()[1] == 0
else:
    sys.exit(0)
"""
"""What follows is done under each limit, in a process of its own."""


@pytest.mark.parametrize("when", ["before", "during"])
def test_hazard_3_no_guest_runs_under_a_limit_on_address_space(echo, when):
    """Under such a limit WasmEdge says OK and gives a NULL base: a guest would read and write the host."""
    each = EACH if when == "before" else EACH.replace("\n", "\n    ")
    status, said = run(echo, **{when: each})
    assert status == 0
    lines = said.splitlines()
    assert len(lines) == len(LIMITS)
    for line in lines:
        assert line.startswith("Unsafe this process has a limit on its address space")
        assert "ulimit -v unlimited" in line


def test_hazard_3_a_start_section_does_not_run_under_a_limit_either(aot):
    writes = wat("""(module (memory (export "memory") 1)
      (func $s (i32.store (i32.const 0) (i32.const 1))) (start $s) (func (export "_start")))""")
    status, said = run(aot(writes), during=LIMITED.format(soft="2 << 30", hard="-1"))
    assert (status, said.split()[0]) == (0, "Unsafe")


def test_hazard_3_a_limit_that_was_inherited_is_seen(echo):
    status, said = run(echo, shell="ulimit -v 1000000000; ")
    assert (status, said.split()[0]) == (0, "Unsafe")


def test_hazard_3_a_reservation_that_fails_is_noticed_before_the_first_call(aot):
    """The check itself taken away: what WasmEdge then makes has no base, and its memory is refused."""
    hostile = aot(
        wat("""(module (memory (export "memory") 1)
      (func (export "_start") (i32.store (i32.const 64) (i32.const 0x41414141))))""")
    )
    without = "import edge_runtime.wasmedge.memory as m; m.check_address_space = lambda: None"
    # So little that 4 GiB more can't be reserved.
    limit = "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))"
    status, said = run(hostile, during=f"{without}; {limit}")
    assert status == 0
    assert said.startswith("Unsafe the guest's memory was not reserved (0 pages of 1)")


def test_hazard_2_a_stack_overflow_ends_its_process_by_a_signal(aot):
    status, _ = run(aot(guest("overflow")))
    assert status == -signal.SIGSEGV


def test_hazard_1_traps_with_other_threads_about(echo, aot):
    """Threads that run no guest are no danger."""
    trap = aot(guest("trap"))
    threads = (
        "import threading, time; [threading.Thread(target=time.sleep, args=(1,), daemon=True).start() for _ in 'abc']"
    )
    for _ in range(3):
        assert run(trap, threads)[1].startswith("GuestFault The function f failed. It trapped: unreachable")


def test_memory_beyond_the_limit_is_refused_to_the_guest(tmp_path):
    hog = function(guest("hog"), tmp_path, CallLimits(memory_pages=1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GuestFault):
        hog.call(Request("GET"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 64 * 1024, "KiB: 1,024 pages are 64 MiB"


WASI_OPEN = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "/etc/passwd")
  (data (i32.const 200) "Content-Type: a/b\\0a\\0a")
  (data (i32.const 0) "\\c8\\00\\00\\00\\13\\00\\00\\00\\00\\01\\00\\00\\01\\00\\00\\00")
  (func (export "_start") (local $fd i32) (local $opened i32)
    ;; Every descriptor that could be a folder.
    (loop $next
      (if (i32.eqz (call $open (local.get $fd) (i32.const 1) (i32.const 100) (i32.const 11) (i32.const 0)
                     (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 300)))
        (then (local.set $opened (i32.add (local.get $opened) (i32.const 1)))))
      (if (i32.eqz (call $prestat (local.get $fd) (i32.const 300)))
        (then (local.set $opened (i32.add (local.get $opened) (i32.const 1)))))
      (br_if $next (i32.lt_u (local.tee $fd (i32.add (local.get $fd) (i32.const 1))) (i32.const 64))))
    (i32.store8 (i32.const 256) (i32.add (i32.const 48) (local.get $opened)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 300)))))"""


def test_a_guest_has_no_files(tmp_path):
    assert function(wat(WASI_OPEN), tmp_path).call(Request("GET")).body == b"0"


def test_a_guest_can_not_have_the_hosts_memory_copied_out(tmp_path):
    """Vectors that begin inside the guest's memory and end outside, or wrap round at 4 GiB."""
    writes = """(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "_start")
        (i32.store (i32.const 0) (i32.const {start})) (i32.store (i32.const 4) (i32.const {length}))
        (if (i32.ne (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 21))
          (then unreachable))))"""
    for start, length in ((65530, 7), (0, 65537), (65536, 1), (-1, 1), (16, -16), (-16, 32)):
        wasm = wat(writes.format(start=start, length=length))
        with pytest.raises(GuestFault) as fault:
            function(wasm, tmp_path).call(Request("GET"))
        assert fault.value.code == "guest_response_invalid", "EFAULT was answered, and nothing written"


def test_the_hosts_environment_is_not_the_guests(tmp_path, monkeypatch):
    monkeypatch.setenv("SKERRY_SECRET", "hush")
    assert b"hush" not in function(guest("env"), tmp_path).call(Request("GET")).body


def test_a_window_on_a_guests_memory_does_not_outlive_it(tmp_path):
    from edge_runtime.guests.host_functions import host

    function(guest("echo"), tmp_path).call(Request("POST", body=b"x"))
    memory = host().memory
    assert (memory.size, len(memory.buffer)) == (0, 0)
    with pytest.raises(IndexError):
        memory.read(0, 1)


def test_aot_files_are_for_their_owner_alone(echo):
    assert os.stat(echo.path).st_mode & 0o777 == 0o600
