"""Guests that do what none of ours would, by the C library and by Python: what is said of them is the same."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from edge_runtime.ipc import progress_page
from edge_runtime.native import library
from tests.guests.build import wat
from tests.support.both_ways import BothWays, both_ways
from tests.support.deadlines import scaled

pytestmark = [
    pytest.mark.never_retry,
    pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}"),
]

ANSWER = '"content-type: text/plain\\n\\nbody"'
WRITE = "(drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 4)))"
NOTHING = '(func (export "_start"))'


def wagi(body: str, text: str = ANSWER) -> bytes:
    """A program; `$write` and the others are WASI's, and the vector at 8 has `text`."""
    imports = "\n".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func ${short} (param {parameters}) {result}))'
        for name, short, parameters, result in [
            ("fd_write", "write", "i32 i32 i32 i32", "(result i32)"),
            ("fd_read", "read", "i32 i32 i32 i32", "(result i32)"),
            ("proc_exit", "exit", "i32", ""),
            ("poll_oneoff", "poll", "i32 i32 i32 i32", "(result i32)"),
        ]
    )
    size = len(text[1:-1].replace("\\n", "_").replace("\\r", "_"))
    return wat(f"""(module {imports} (memory (export "memory") 128 150)
      (data (i32.const 8) "\\40\\00\\00\\00\\{size:02x}\\00\\00\\00") (data (i32.const 64) {text})
      {body})""")


def direct(allocate: str, handle: str, data: str = '""', more: str = "") -> bytes:
    """A library of the ABI `direct`; `data` lies at 1024."""
    return wat(f"""(module
      (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1 2) (data (i32.const 1024) {data}) {more}
      (func (export "skerry_alloc") (param i32) (result i32) {allocate})
      (func (export "skerry_handle") (param i32 i32) (result i64) {handle}))""")


def answers(at: int, size: int) -> str:
    return f"(i64.const {at << 32 | size})"


def started(body: str) -> str:
    return f"(func $first {body}) (start $first)"


def called(body: str) -> str:
    return f'(func (export "_start") {body})'


STATUS_200 = "\\c8\\00\\00\\00"
TYPE = "content-type: a/b\\n"
ROOM = "(i32.const 4096)"
# The status 299, and a body that is the four bytes of what fd_read has read.
READS = """(i32.store (i32.const 8) (i32.const 512)) (i32.store (i32.const 12) (i32.const 100))
  (drop (call $read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 1050)))"""
# 512 vectors of the whole memory, 4 GiB all in all, and one that is outside; what it returns comes into the header.
MUCH = """(local $i i32)
  (loop $more
    (i32.store (i32.add (i32.const 4100) (i32.mul (local.get $i) (i32.const 8))) (i32.const 8388608))
    (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 513))))
  (i32.store (i32.const 8192) (i32.const -8))
  (i32.store8 (i32.const 64) (i32.add (i32.const 99)
    (call $write (i32.const 2) (i32.const 4096) (i32.const 513) (i32.const 4))))"""
IF_X = """(i32.store (i32.const 16) (i32.const 32)) (i32.store (i32.const 20) (i32.const 1))
  (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
  (if (i32.eq (i32.load8_u (i32.const 32)) (i32.const 120)) (then """
MOST = "writes 4 GiB to the log"
GUESTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "starts by exit 0": (wagi(started(f"{WRITE} (call $exit (i32.const 0))") + NOTHING), {}),
    "starts by exit 0 for some": (
        wagi(started(f"{IF_X} {WRITE} (call $exit (i32.const 0))))") + called(WRITE)),
        {},
    ),
    "starts by a trap for some": (wagi(started(f"{IF_X} {WRITE} unreachable))") + called(WRITE)), {}),
    "starts by a poll for some": (
        wagi(
            started(f"{IF_X} (drop (call $poll (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))))")
            + called(WRITE)
        ),
        {},
    ),
    "initializes by exit 0 for some": (
        wagi(f'(func (export "_initialize") {IF_X} {WRITE} (call $exit (i32.const 0)))))' + called(WRITE)),
        {},
    ),
    "starts by exit 3": (wagi(started("(call $exit (i32.const 3))") + NOTHING), {}),
    "starts by a trap": (wagi(started("unreachable") + NOTHING), {}),
    "writes at the start": (wagi(started(WRITE) + NOTHING), {}),
    "polls at the start": (
        wagi(started(f"(drop (call $poll (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))) {WRITE}") + NOTHING),
        {},
    ),
    "grows at the start": (
        wagi(started("(drop (memory.grow (i32.const 9))) (i32.store (i32.const 8500000) (i32.const 1))") + NOTHING),
        {},
    ),
    "initializes by exit 0": (
        wagi(f'(func (export "_initialize") {WRITE} (call $exit (i32.const 0)))' + NOTHING),
        {},
    ),
    "initializes by exit 1": (wagi('(func (export "_initialize") (call $exit (i32.const 1)))' + NOTHING), {}),
    "initializes by a trap": (wagi('(func (export "_initialize") unreachable)' + NOTHING), {}),
    "exits by 0": (wagi(called(f"{WRITE} (call $exit (i32.const 0)) unreachable")), {}),
    "exits by -1": (wagi(called(f"{WRITE} (call $exit (i32.const -1))")), {}),
    "traps after its answer": (wagi(called(f"{WRITE} unreachable")), {}),
    "grows and traps": (wagi(called("(drop (memory.grow (i32.const 3))) unreachable")), {}),
    MOST: (wagi(called(f"{MUCH} {WRITE}")), {}),
    "writes much": (
        wagi(
            called(
                f"(i32.store (i32.const 12) (i32.const 4000000)) (loop $more {WRITE} (br $more))",
            )
        ),
        {},
    ),
    # Its header lines and its body, each as long as it may be, and a byte more.
    "writes as much as may be": (
        wagi(called(f"(i32.store (i32.const 12) (i32.const 65010)) {WRITE}")),
        {"response_limit": 10},
    ),
    "writes more than may be": (
        wagi(called(f"(i32.store (i32.const 12) (i32.const 65011)) {WRITE}")),
        {"response_limit": 10},
    ),
    "answers nothing": (wagi(NOTHING), {}),
    "answers a blank line": (wagi(called(WRITE), '"\\n\\nbody"'), {}),
    "answers CR LF": (wagi(called(WRITE), '"content-type: a/b\\r\\n\\r\\nbody"'), {}),
    "answers LF CR LF": (wagi(called(WRITE), '"content-type: a/b\\n\\r\\nbody"'), {}),
    "answers CR": (wagi(called(WRITE), '"\\r\\n\\nbody"'), {}),
    "answers no blank line": (wagi(called(WRITE), '"content-type: a/b\\nbody"'), {}),
    "answers a status": (wagi(called(WRITE), '"status: 404 not\\ncontent-type: a/b\\n\\nbody"'), {}),
    "answers 204": (wagi(called(WRITE), '"status: 204 none\\n\\n"'), {}),
    "answers 204 and a body": (wagi(called(WRITE), '"status: 204 none\\ncontent-type: a/b\\n\\nbody"'), {}),
    "answers a length": (wagi(called(WRITE), '"content-length: 4\\ncontent-type: a/b\\n\\nbody"'), {}),
    "answers a wrong length": (wagi(called(WRITE), '"content-length: 5\\ncontent-type: a/b\\n\\nbody"'), {}),
    "answers no type": (wagi(called(WRITE), '"x: y\\nstatus: 200\\n\\nbody"'), {}),
    "answers no type, and a body to some": (
        wagi(
            called(f"{WRITE} {IF_X} (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))))"),
            '"x: y\\nstatus: 200\\n\\n"',
        ),
        {},
    ),
    "answers no type nor body": (wagi(called(WRITE), '"x: y\\nstatus: 200\\n\\n"'), {}),
    "reads what direct has not": (
        direct(ROOM, f"{READS} {answers(1024, 30)}", f'"{STATUS_200}\\12\\00\\00\\00{TYPE}"'),
        {},
    ),
    "direct answers": (direct(ROOM, answers(1024, 30), f'"{STATUS_200}\\12\\00\\00\\00{TYPE}body"'), {}),
    "direct answers a status": (
        direct(ROOM, answers(1024, 38), f'"{STATUS_200}\\16\\00\\00\\00status: 201\\nx: yyyyyyy\\n"'),
        {},
    ),
    "direct answers no type": (direct(ROOM, answers(1024, 18), f'"{STATUS_200}\\05\\00\\00\\00x: y\\nbody!"'), {}),
    "direct answers 304": (direct(ROOM, answers(1024, 30), f'"\\30\\01\\00\\00\\12\\00\\00\\00{TYPE}body"'), {}),
    "direct answers 600": (direct(ROOM, answers(1024, 26), f'"\\58\\02\\00\\00\\12\\00\\00\\00{TYPE}"'), {}),
    "direct answers 199": (direct(ROOM, answers(1024, 26), f'"\\c7\\00\\00\\00\\12\\00\\00\\00{TYPE}"'), {}),
    "direct answers 7 bytes": (direct(ROOM, answers(1024, 7)), {}),
    "direct answers lines that are longer": (
        direct(ROOM, answers(1024, 30), f'"{STATUS_200}\\17\\00\\00\\00{TYPE}body"'),
        {},
    ),
    "direct answers at the end": (direct(ROOM, answers(65536, 0)), {}),
    "direct answers behind the end": (direct(ROOM, answers(65537, 0)), {}),
    "direct answers half outside": (direct(ROOM, answers(65530, 8)), {}),
    "direct answers 4 GiB": (direct(ROOM, answers(0, 2**32 - 1)), {}),
    "direct answers much": (direct(ROOM, answers(0, 65536)), {"response_limit": 10}),
    "direct answers a body at its limit": (
        direct(ROOM, answers(1024, 30), f'"{STATUS_200}\\12\\00\\00\\00{TYPE}body"'),
        {"response_limit": 4},
    ),
    "direct answers a body above its limit": (
        direct(ROOM, answers(1024, 31), f'"{STATUS_200}\\12\\00\\00\\00{TYPE}body!"'),
        {"response_limit": 4},
    ),
    "direct has no room": (direct("(i32.const 0)", answers(0, 0)), {}),
    "direct has room outside": (direct("(i32.const 65530)", answers(0, 0)), {}),
    "direct has room nowhere": (direct("(i32.const -1)", answers(0, 0)), {}),
    "direct has room where it grows": (
        direct("(drop (memory.grow (i32.const 1))) (i32.const 65600)", answers(65600, 8)),
        {},
    ),
    "direct exits by 0": (direct("(call $exit (i32.const 0)) (i32.const 0)", answers(0, 0)), {}),
    "direct initializes by exit 0": (
        direct(ROOM, answers(0, 0), more='(func (export "_initialize") (call $exit (i32.const 0)))'),
        {},
    ),
    "direct starts by exit 0": (
        direct(ROOM, answers(0, 0), more="(func $first (call $exit (i32.const 0))) (start $first)"),
        {},
    ),
}
for made in GUESTS.values():
    made[1].setdefault("memory_pages", 200)
    made[1].setdefault("log_bytes", 3000)
for name, (_, fields) in GUESTS.items():
    if "direct" in name:
        fields["abi"] = "direct"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothWays]:
    with both_ways(tmp_path_factory.mktemp("same"), GUESTS, eager=True) as run:
        yield run


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_ends_alike(both: BothWays, name: str) -> None:
    requests = [("POST", b"a"), ("POST", b"b"), ("GET", b""), ("HEAD", b"x"), ("POST", b"xx"), ("PUT", b"y")]
    # A call that writes 4 GiB reads nothing of its request, and takes seconds where memory is slow; the second is C's.
    for method, body in requests[:2] if name == MOST else requests:
        ours, theirs = both.said(name, body, method=method)
        assert ours == theirs
    if name in ("exits by 0", "direct answers", "answers CR LF", MOST):
        # The first one alone is Python's.
        assert both.by_python[name] == 1


def test_the_page_says_when_a_call_has_ended(both: BothWays) -> None:
    """After its answer: so it is waited for."""
    in_c = both.in_c
    for _ in range(3):
        in_c.call("answers CR LF")
    assert in_c.ran[-1] != in_c._request
    until = time.monotonic() + scaled(30)
    while (seen := progress_page.read(in_c.words, 0)).state != progress_page.IDLE and time.monotonic() < until:
        time.sleep(0.01)
    assert (seen.state, seen.request) == (progress_page.IDLE, in_c._request)
