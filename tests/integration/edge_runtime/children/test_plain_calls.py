"""Plain calls in C: what the library runs by itself, what it gives back, and that both ways of a call are the same."""

from collections.abc import Iterator
from time import perf_counter

import pytest

from control.protocol.manifest import HttpGrant
from edge_runtime.ipc import call_times, frames, progress_page
from edge_runtime.ipc.request_head import Via
from edge_runtime.native import library
from tests.guests.build import guest, wat
from tests.support.both_ways import BothWays, both_ways
from tests.support.worker_thread import WorkerThread

pytestmark = pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}")

TEXT = b"content-type: text/plain\r\n"
GROWS = """(module
  (memory (export "memory") 1)
  (func (export "skerry_alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "skerry_handle") (param i32 i32) (result i64)
    (drop (memory.grow (i32.const 3)))
    (i32.store (i32.const 131072) (i32.add (i32.const 200) (i32.load (i32.const 131080))))
    (i32.store (i32.const 131076) (i32.const 0))
    (i32.store (i32.const 131080) (i32.const 1))
    (i64.or (i64.shl (i64.const 131072) (i64.const 32)) (i64.const 8))))"""
"""Grows its memory, and answers 200 where what is there is zeros, as it must be: else 201."""

FUNCTIONS = {
    "direct": (guest("direct"), {"abi": "direct", "config": {"GREETING": "hello"}}),
    "echo": (guest("echo"), {}),
    "env": (guest("env"), {"config": {"GREETING": "hello"}}),
    "exits": (guest("exit"), {}),
    "traps": (guest("trap"), {}),
    "grows": (wat(GROWS), {"abi": "direct"}),
    "http_proxy": (guest("env"), {"config": {"HTTP_X": "is the function's"}}),
    "asks": (guest("direct"), {"abi": "direct"}),
    "fetches": (guest("direct"), {"abi": "direct", "http": HttpGrant(["a.example"])}),
    "small": (guest("echo"), {"response_limit": 100}),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothWays]:
    with both_ways(tmp_path_factory.mktemp("plain"), FUNCTIONS) as run:
        yield run


@pytest.fixture
def in_c(both: BothWays) -> WorkerThread:
    return both.in_c


def ran_in_python(run: WorkerThread, name: str, body: bytes = b"", **head: object) -> bool:
    """Make a call for the second time, and say whether Python has run it."""
    run.call(name, body, **head)
    before = len(run.ran)
    run.call(name, body, **head)
    return len(run.ran) > before


def test_a_function_is_the_librarys_from_its_second_call_on(in_c: WorkerThread) -> None:
    before = len(in_c.ran)
    for _ in range(10):
        assert in_c.call("echo", b"a body").body == b"a body"
    assert len(in_c.ran) == before + 1
    for number in range(10):
        said = in_c.call("direct", b"b", path="/echo", headers=[(b"x-thing", b"%d" % number)])
        assert said.kind == 200
        assert b"x-thing %d\n" % number in said.body
    assert len(in_c.ran) == before + 2


@pytest.mark.parametrize("name", ["fetches", "http_proxy"])
def test_a_function_that_is_granted_http_or_replaces_a_variable_is_pythons(in_c: WorkerThread, name: str) -> None:
    assert ran_in_python(in_c, name)


def test_a_guest_that_uses_what_the_library_has_not_is_run_again_by_python(in_c: WorkerThread) -> None:
    """SQL without a grant is answered by an error, and counted."""
    in_c.call("asks", path="/body")
    before = len(in_c.ran)
    said = in_c.call("asks", b'{"sql": "SELECT 1"}', path="/sql")
    assert b"not_granted" in said.body
    assert len(in_c.ran) == before + 1
    for _ in range(library.opened().FOREIGN_CALLS + 1):
        in_c.call("asks", path="/body")
    assert len(in_c.ran) == before + 1 + library.opened().FOREIGN_CALLS
    assert not ran_in_python(in_c, "asks", path="/body")


def test_a_call_that_the_front_took_back_is_left_out(in_c: WorkerThread) -> None:
    in_c.call("echo", b"1")
    in_c.send(in_c.frame("echo", b"taken back", claimable=False), in_c.frame("echo", b"2"))
    assert in_c.answer().body == b"2"


def test_frames_of_every_kind_come_in_their_order(in_c: WorkerThread) -> None:
    """Many in one write, and calls of Python's between those of the library's."""
    in_c.call("echo", b"0")
    in_c.send(
        *(
            in_c.frame("fetches" if n % 5 == 3 else "echo", b"%d" % n, path="/body" if n % 5 == 3 else "")
            for n in range(50)
        )
    )
    assert [in_c.answer().body for _ in range(50)] == [b"%d" % n for n in range(50)]


def test_a_frame_in_pieces_and_large_ones(in_c: WorkerThread) -> None:
    in_c.call("echo", b"0")
    for size in (1, 1000, 65_536, library.opened().LOOP_ROOM, 1_000_000):
        body = bytes(range(256)) * (size // 256 + 1)
        frame = in_c.frame("echo", body)
        for at in range(0, len(frame), len(frame) // 3 + 1):
            in_c.send(frame[at : at + len(frame) // 3 + 1])
        assert in_c.answer().body == body


def test_the_page_says_which_call_has_run(in_c: WorkerThread) -> None:
    for path in ("/body", "/body", "/log"):
        in_c.call("direct", path=path)
    last = in_c._request
    # The call after it is Python's, so that it comes when the loop has ended the one before.
    in_c.send(in_c.frame("direct", path="/log"), in_c.frame("fetches", path="/body"))
    assert in_c.answer().log == b"to stdout\nto stderr"
    assert in_c.answer().kind == 200
    assert in_c.call("direct", path="/log").kind == 200
    seen = progress_page.read(in_c.words, 0)
    assert seen.request == last + 3
    assert progress_page.log(in_c.words, 0) == b"to stdout\nto stderr"


TIMED = [
    ("echo", {}, b"body"),
    ("direct", {"path": "/echo", "headers": [(b"x-thing", b"of a timed call")]}, b""),
    ("direct", {"path": "/log"}, b""),
    ("direct", {"path": "/trap"}, b""),
    ("direct", {"path": "/status", "query": b"code=503"}, b""),
    ("direct", {"path": "/status", "query": b"code=999"}, b""),
    ("small", {}, b"x" * 101),
]  # fmt: skip


@pytest.mark.parametrize("call", TIMED, ids=lambda call: f"{call[0]} {call[1].get('path', '')}")
def test_the_library_tells_the_times_of_a_call_where_they_are_asked_for(
    both: BothWays, call: tuple[str, dict[str, object], bytes]
) -> None:
    name, head, body = call
    both.said(name, b"", path="/body")
    for timed in (False, True, False):
        before, began = len(both.in_c.ran), perf_counter()
        said = both.said(name, body, timed=timed, **head)
        took = (perf_counter() - began) * 1e6
        assert len(both.in_c.ran) == before
        assert [bool(each.times) for each in said] == [timed] * 2
        for told in (call_times.decode(each.times) for each in said if timed):
            assert (told.steps, told.others, told.texts) == ([], [], [])
            assert 0 < told.micros <= took
        assert said[0]._replace(times=b"") == said[1]._replace(times=b"")


def test_a_timed_call_behind_one_of_pythons_is_the_librarys(in_c: WorkerThread) -> None:
    in_c.call("echo", b"0")
    before = len(in_c.ran)
    in_c.send(in_c.frame("fetches", path="/body"), in_c.frame("echo", b"1", timed=True), in_c.frame("echo", b"2"))
    assert [bool(in_c.answer().times) for _ in range(3)] == [True, True, False]
    assert len(in_c.ran) == before + 1


def test_a_timed_call_that_python_must_run_again_tells_its_times(in_c: WorkerThread) -> None:
    run = in_c.call("asks", path="/body")
    for _ in range(library.opened().FOREIGN_CALLS):
        run = in_c.call("asks", path="/body")
    before = len(in_c.ran)
    run = in_c.call("asks", b'{"sql": "SELECT 1"}', path="/sql", timed=True)
    assert len(in_c.ran) == before + 1
    assert call_times.decode(run.times).steps == []


def test_a_memory_that_grew_is_as_it_was_for_the_next_call(in_c: WorkerThread) -> None:
    assert [in_c.call("grows").kind for _ in range(5)] == [200] * 5
    assert not ran_in_python(in_c, "grows")


MANY = [(b"host", b"shop:80"), (b"accept", b"a"), (b"accept", b"b")]
CALLS = [
    ("direct", {"path": "/echo", "query": b"a=b&c", "headers": [(b"x-thing", b"\xe9"), (b"cookie", b"")]}, b"body"),
    ("direct", {"path": "/echo", "route": "/things/{id}", "script": "/things", "params": [("id", "a/\xe9 b")]}, b""),
    ("direct", {"path": "/env", "query": b"name=GREETING"}, b""),
    ("direct", {"path": "/env", "query": b"name=REMOTE_USER", "via": Via("https", "till-3", "Bearer")}, b""),
    ("direct", {"path": "/log"}, b""),
    ("direct", {"path": "/trap"}, b""),
    ("direct", {"path": "/exit", "query": b"code=0"}, b""),
    ("direct", {"path": "/exit", "query": b"code=-1"}, b""),
    ("direct", {"path": "/status", "query": b"code=204"}, b""),
    ("direct", {"path": "/status", "query": b"code=999"}, b""),
    ("direct", {"path": "/body", "method": "HEAD"}, b""),
    ("direct", {"path": "/body"}, b"x" * 100_000),
    ("env", {"path": "/a%20b/%e9", "query": b"x&&y=1&", "headers": MANY}, b"12"),
    ("env", {"headers": [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x_y", b"no"), (b"proxy", b"no")]}, b""),
    ("env", {"headers": [(b"content-length", b"0"), (b"content-type", b"text/plain")]}, b""),
    ("env", {"via": Via("https", "till-3", "Certificate"), "client": "::1"}, b""),
    ("env", {"via": Via("http", "ställe", "Bearer")}, b""),
    ("env", {"path": "/%00"}, b""),
    ("env", {"params": [("id", "a b"), ("x", "\xe9")], "route": "/r/{id}/{x}", "script": "/r"}, b""),
    ("exits", {}, b""),
    ("traps", {}, b""),
    ("grows", {}, b""),
    ("small", {}, b"x" * 100),
    ("small", {}, b"x" * 101),
    ("small", {}, b"x" * 100_000),
    ("echo", {"method": "HEAD"}, b"body"),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1].get('path', '')}")
def test_both_say_the_same(both: BothWays, call: tuple[str, dict[str, object], bytes]) -> None:
    name, head, body = call
    expected = both.in_python.call(name, body, **head)  # type: ignore[arg-type]
    assert [both.in_c.call(name, body, **head) for _ in range(3)] == [expected] * 3  # type: ignore[arg-type]
    assert expected.kind >= frames.FIRST_STATUS or expected.kind == frames.FAULT
