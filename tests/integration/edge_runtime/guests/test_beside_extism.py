"""Plug-ins on a node's runtime and by Extism's own host, side by side: the same calls of the kernel and of the host end
alike, with the same answers, errors and logs. What doesn't is in docs/reference/other-hosts.md, all of it.

`SKERRY_TEST_GUESTS` is how many sequences of calls are tried; `just faults` tries many more.
"""

import base64
import hashlib
import http.client
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.manifest_fields import Manifest
from edge_runtime.guests import http_json
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.guest import CallLimits, CallServices, LoadedFunction
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.http_messages import NotFetched
from edge_runtime.oneshot.check import check_module
from tests.guests.build import guest, wat
from tests.support import by_extism, by_wasmtime
from tests.support.by_extism import Call, End, alike, by_node
from tests.support.different import Differences
from tests.support.functions import compiled, loading, local
from tests.support.kernel_scripts import CONFIG, Op, Place, Step, encoded, large_scripts, scripts

EXAMPLES = int(os.environ.get("SKERRY_TEST_GUESTS", "150"))
ALWAYS_THE_SAME = "SKERRY_TEST_GUESTS" not in os.environ
"""Whether each run tries the same sequences, so that what others find doesn't fail this one by chance."""


@pytest.fixture(scope="module")
def reference() -> Iterator[Executor]:
    with by_wasmtime.apart() as pool:
        yield pool


def function(wasm: bytes, folder: Path, way: str) -> LoadedFunction:
    manifest = {"abi": "extism", "config": CONFIG, "entry": ""}
    if way == "compiled":
        return LoadedFunction.load(local(compiled(wasm, folder), **manifest))
    path = folder / "module.wasm"
    path.write_bytes(wasm)
    digest = hashlib.sha256(wasm).hexdigest()
    return LoadedFunction.load(LocalFunction("f", 1, digest, Manifest(**manifest), "", wasm=str(path)))


@pytest.fixture(scope="module", params=["compiled", "interpreted"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedFunction]:
    loaded = function(guest("kernel_calls"), tmp_path_factory.mktemp("code"), request.param)
    yield loaded
    loaded.close()


def by_reference(pool: Executor, calls: Sequence[Call], wasm: bytes | None = None) -> list[End]:
    return pool.submit(by_extism.calls, wasm or guest("kernel_calls"), calls, CONFIG).result()


def compare(ours: LoadedFunction, reference: Executor, calls: Sequence[Call]) -> None:
    assert [by_node(ours, call) for call in calls] == [alike(end) for end in by_reference(reference, calls)]


several = st.lists(st.tuples(scripts(), st.binary(max_size=40)), min_size=1, max_size=3)
pytestmark = pytest.mark.timeout(900)
checks = settings(
    max_examples=EXAMPLES,
    derandomize=ALWAYS_THE_SAME,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@checks
@given(several, st.sampled_from(["plain", "silent"]))
def test_any_calls_of_the_kernel_end_alike(
    ours: LoadedFunction, reference: Executor, made: list[tuple[list[Step], bytes]], export: str
) -> None:
    calls = [Call(name, encoded(steps, data)) for steps, data in made for name in ("traced", export)]
    compare(ours, reference, calls)


@checks
@given(large_scripts())
def test_blocks_that_are_used_again_keep_what_they_have(
    ours: LoadedFunction, reference: Executor, steps: list[Step]
) -> None:
    compare(ours, reference, [Call("traced", encoded(steps))])


IMPORTS = """
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error (param i64)))
  (import "extism:host/env" "input_length" (func $size (result i64)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (global $begun (mut i32) (i32.const 65))
  (func $begin (global.set $begun (i32.add (global.get $begun) (i32.const 1))))
  (func $say (local $at i64) (local.set $at (call $alloc (i64.const 1)))
    (call $store (local.get $at) (global.get $begun)) (call $output (local.get $at) (i64.const 1)))
  (func $complain (local $at i64) (local.set $at (call $alloc (i64.const 1)))
    (call $store (local.get $at) (i32.const 66)) (call $error (local.get $at)))
"""
RUN = '(func (export "run") (result i32) (call $say) (i32.const 0))'


def module(*fields: str) -> bytes:
    return wat(f"(module {IMPORTS} {' '.join(fields)})")


INITIALIZED = {
    "_initialize": ('(export "_initialize" (func $begin))', RUN),
    "constructors": ('(export "__wasm_call_ctors" (func $begin))', RUN),
    "both": (
        '(func (export "_initialize") (call $begin) (call $begin)) (export "__wasm_call_ctors" (func $begin))',
        RUN,
    ),
    "haskell": (
        '(export "_initialize" (func $begin)) (export "__wasm_call_ctors" (func $begin))',
        '(func (export "hs_init") (param i32 i32) (call $begin) (if (local.get 0) (then unreachable)))',
        RUN,
    ),
    "haskell alone": (
        '(export "__wasm_call_ctors" (func $begin)) (func (export "hs_init") (param i32 i32) (call $begin))',
        RUN,
    ),
    "start section": ("(start $begin)", RUN),
    "of another type": ('(func (export "__wasm_call_ctors") (result i32) (call $begin) (i32.const 0))', RUN),
    "sees no input": (
        '(func (export "_initialize") (if (i64.ne (call $size) (i64.const 0)) (then unreachable)))',
        RUN,
    ),
    "error before": ('(export "_initialize" (func $complain))', RUN),
    "answer before": ('(export "_initialize" (func $say)) (func (export "run") (result i32) (i32.const 0))',),
    "answer in a start section": ("(start $say)", '(func (export "run") (result i32) (i32.const 0))'),
    "exit in a start section": ("(func $leave (call $exit (i32.const 0))) (start $leave)", RUN),
    "exit in _initialize": ('(func (export "_initialize") (call $exit (i32.const 0)))', RUN),
    "exit in the constructors": ('(func (export "__wasm_call_ctors") (call $exit (i32.const 0)))', RUN),
    "exit in hs_init": ('(func (export "hs_init") (param i32 i32) (call $exit (i32.const 0)))', RUN),
    "exit with an answer": ('(func (export "run") (result i32) (call $say) (call $exit (i32.const 0)) unreachable)',),
    "exit with an error": ('(func (export "run") (call $complain) (call $exit (i32.const 0)))',),
    "exit with an error and a code": ('(func (export "run") (call $complain) (call $exit (i32.const 9)))',),
    "a trap in _initialize": ('(func (export "_initialize") (call $complain) unreachable)', RUN),
    "a trap in the constructors": ('(func (export "__wasm_call_ctors") (call $complain) unreachable)', RUN),
    "an error and a trap": ('(func (export "run") (call $complain) unreachable)',),
    "a command": ('(func (export "_start") (call $say))', '(export "run" (func $say))'),
    "no such function": ("",),
    "a function with a parameter": ('(func (export "run") (param i32) (call $say))',),
}
"""What a plug-in does before the function that is called, and where it ends."""


@pytest.mark.parametrize("case", INITIALIZED)
def test_a_plugin_begins_and_ends_as_by_extism(case: str, reference: Executor, tmp_path: Path) -> None:
    wasm = module(*INITIALIZED[case])
    loaded = function(wasm, tmp_path, "interpreted")
    call = Call("_start" if case == "a command" else "run", b"in")
    mine, theirs = by_node(loaded, call), alike(by_reference(reference, [call], wasm)[0])
    loaded.close()
    if "in _initialize" in case or "in the" in case or "section" in case or "in hs_init" in case:
        # The reference host has the initialization of a plug-in fail, whatever the reason.
        mine = mine._replace(how="refused", data=b"") if mine.how in ("trap", "code") else mine
    if theirs.how == "error" and theirs.data.startswith(b"expected "):
        theirs = End("refused")
    assert mine == theirs


class Site(BaseHTTPRequestHandler):
    """Answers what it was asked, or as its path says; with no header of its own."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        own = sorted((name.lower(), value) for name, value in self.headers.items() if name.lower().startswith("x-"))
        body = orjson.dumps({"method": self.command, "path": self.path, "headers": own, "body": sent.hex()})
        headers = [("X-Z", "last"), ("Content-Type", "text/plain"), ("X-A", "1")]
        status = 200
        match self.path:
            case "/missing":
                status = 404
            case "/moved":
                status, headers = 302, [("Location", "/elsewhere")]
            case "/empty":
                body = b""
            case "/bytes":
                body = bytes(range(256))
            case "/twice":
                headers, body = [("X-A", "1"), ("x-a", "2")], b""
            case "/latin":
                headers, body = [("X-A", "\xe4")], b""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class Fetching:
    """The requests of a call, made as a node makes them: no redirect is followed."""

    def fetch(self, request: bytes) -> bytes:
        try:
            http_json.to_front(request)
        except NotFetched as error:
            return orjson.dumps({"error": {"code": error.code, "message": str(error)}})
        asked = orjson.loads(request)
        url = urlsplit(asked["url"])
        if url.hostname != "127.0.0.1":
            return orjson.dumps({"error": {"code": "not_granted", "message": "no such host"}})
        connection = http.client.HTTPConnection(url.hostname, url.port)
        body = base64.b64decode(asked["body"]["$blob"]) if "body" in asked else None
        connection.request(asked["method"], url.path, body, dict(asked["headers"]))
        answer = connection.getresponse()
        content = {"$blob": base64.b64encode(answer.read()).decode()}
        connection.close()
        headers = [[name.lower(), value] for name, value in answer.getheaders()]
        return orjson.dumps({"status": answer.status, "headers": headers, "body": content})


def requesting(request: bytes, body: bytes | None = None) -> list[Step]:
    """Make a request, and answer its body; the trace has its status and its headers too."""
    return [
        (Op.TEXT, request),
        (Op.TEXT, body or b""),
        (Op.HTTP_REQUEST, Place(0), Place(1)),
        (Op.HTTP_STATUS_CODE,),
        (Op.HTTP_HEADERS,),
        (Op.LENGTH, Place(0)),
        (Op.LENGTH, Place(1)),
        (Op.OUTPUT_SET, Place(2), 1),
    ]


REQUESTS: dict[str, tuple[bytes, bytes | None]] = {
    "get": (b'{"url": "SITE/a"}', None),
    "post": (b'{"url": "SITE/a", "method": "POST"}', b"a body"),
    "post without a body": (b'{"url": "SITE/a", "method": "POST"}', None),
    "method in lower case": (b'{"url": "SITE/a", "method": "put"}', b"\0\xff"),
    "delete": (b'{"url": "SITE/a", "method": "DELETE"}', None),
    "head": (b'{"url": "SITE/a", "method": "HEAD"}', None),
    "headers": (b'{"url": "SITE/a", "headers": {"X-One": "1", "x-two": "2"}}', None),
    "not found": (b'{"url": "SITE/missing"}', None),
    "nothing in the answer": (b'{"url": "SITE/empty"}', None),
    "any bytes": (b'{"url": "SITE/bytes"}', None),
    "another host": (b'{"url": "http://localhost/"}', None),
    "no url": (b'{"method": "GET"}', None),
    "a url that is none": (b'{"url": "nonsense"}', None),
    "no JSON": (b"{", None),
    "another JSON": (b"[]", None),
    "nothing asked": (b"", None),
    "a header that is no text": (b'{"url": "SITE/a", "headers": {"X-One": 1}}', None),
    "a method that is no text": (b'{"url": "SITE/a", "method": 1}', None),
    "a method that is none": (b'{"url": "SITE/a", "method": null}', None),
}


def requested(ours: LoadedFunction, reference: Executor, site: str, steps: list[Step]) -> tuple[list[End], list[End]]:
    calls = [Call(name, encoded(steps)) for name in ("traced", "plain")]
    theirs = reference.submit(by_extism.calls, guest("kernel_calls"), calls, CONFIG, ["127.0.0.1"])
    return [by_node(ours, call, CallServices(http=Fetching())) for call in calls], [alike(e) for e in theirs.result()]


@pytest.mark.parametrize("case", REQUESTS)
def test_requests_by_http_are_answered_alike(ours: LoadedFunction, reference: Executor, site: str, case: str) -> None:
    request, body = REQUESTS[case]
    mine, theirs = requested(ours, reference, site, requesting(request.replace(b"SITE", site.encode()), body))
    assert mine == theirs


@pytest.mark.parametrize("handles", [(Place(0), 1000), (Place(0, 1), 0), (1000, 0)])
def test_requests_by_http_with_wrong_handles(
    ours: LoadedFunction, reference: Executor, site: str, handles: tuple[Place | int, Place | int]
) -> None:
    text = b'{"url": "%s/a", "method": "POST"}' % site.encode()
    steps: list[Step] = [(Op.TEXT, text), (Op.HTTP_REQUEST, *handles), (Op.LENGTH, Place(0)), (Op.TEXT, b"more")]
    mine, theirs = requested(ours, reference, site, [*steps, (Op.ALLOC, 5), (Op.CONTENT, Place(3))])
    assert mine == theirs


PLUGIN = [
    *[Call(name, bytes(range(size))) for name in ("echo", "own_input") for size in (0, 1, 7, 8, 9, 250)],
    *[Call(name) for name in ("nothing", "state", "fail", "fail_though_0", "fail_silently", "trap", "fail_and_trap")],
    *[Call("fail", b"its input"), Call("vars"), Call("many_vars"), Call("fill_vars", b"10"), Call("fill_vars", b"11")],
    *[Call("leave", code) for code in (b"0", b"5", b"125")],
    *[Call("config", key) for key in (b"thing", b"empty", b"", "ключ".encode(), b"none", b"\xff")],
    *[Call("large", size) for size in (b"0", b"1", b"100000", b"8000000")],
    *[Call(name, b"{}") for name in ("sql", "ask", "fetch", "traces", "soil", "logs")],
    *[Call(name, at) for name in ("output_outside", "error_outside") for at in (b"3", b"4294967295")],
    *[Call("bad_handle", at) for at in (b"17", b"18446744073709551615")],
]


def test_a_plugin_in_c_ends_alike(reference: Executor, tmp_path: Path) -> None:
    loaded = function(guest("plugin"), tmp_path, "compiled")
    mine = [by_node(loaded, call) for call in PLUGIN]
    loaded.close()
    # What it writes to stdout and stderr is in the log of a node's call alone.
    mine = [end._replace(log=end.log.removesuffix(b"stdout\nstderr\n")) for end in mine]
    assert mine == [alike(end) for end in by_reference(reference, PLUGIN, guest("plugin"))]


# What is different, by the names in docs/reference/other-hosts.md

page = Differences("Extism's own host")


def numbers(end: End) -> list[int]:
    """The trace."""
    assert end.how == "answer", end
    return list(struct.unpack(f"<{len(end.data) // 8}Q", end.data))


def traces(ours: LoadedFunction, reference: Executor, steps: list[Step]) -> tuple[list[int], list[int]]:
    call = Call("traced", encoded(steps))
    return numbers(by_node(ours, call)), numbers(by_reference(reference, [call])[0])


def ends(ours: LoadedFunction, reference: Executor, steps: list[Step]) -> tuple[End, End]:
    call = Call("plain", encoded(steps))
    return by_node(ours, call), by_reference(reference, [call])[0]


TEXT: Step = (Op.TEXT, b"12345678")


@page.shows("instances")
def test_nothing_is_left_for_the_next_call(reference: Executor, tmp_path: Path) -> None:
    wasm = module('(func (export "run") (result i32) (call $say) (call $begin) (i32.const 0))')
    loaded = function(wasm, tmp_path, "interpreted")
    calls = [Call("run")] * 2
    assert [by_node(loaded, call).data for call in calls] == [b"A", b"A"]
    loaded.close()
    assert [end.data for end in reference.submit(by_extism.calls, wasm, calls, {}, (), True).result()] == [b"A", b"B"]


@page.shows("commands that are libraries too")
def test_a_module_with_both_start_and_initialize(reference: Executor, tmp_path: Path) -> None:
    wasm = module('(export "_initialize" (func $begin)) (func (export "_start") (call $say))')
    loaded = function(wasm, tmp_path, "interpreted")
    assert by_node(loaded, Call("_start")) == End("answer", b"B")
    loaded.close()
    assert b"both a Command and a Reactor" in by_reference(reference, [Call("_start")], wasm)[0].data


@page.shows("which exports can be called")
def test_initialization_is_no_function_to_call(reference: Executor, tmp_path: Path) -> None:
    wasm = module('(export "_initialize" (func $say))', '(func (export "run") (result i64) (call $say) (i64.const 0))')
    loaded = function(wasm, tmp_path, "interpreted")
    calls = [Call("_initialize"), Call("run")]
    assert [by_node(loaded, call).how for call in calls] == ["refused", "refused"]
    loaded.close()
    assert by_reference(reference, calls, wasm) == [End("answer", b"A"), End("code", b"-1")]


@page.shows("functions that aren't there")
def test_functions_that_are_for_hosts(reference: Executor) -> None:
    others = {"error_get": "(result i64)", "output_length": "(result i64)", "memory_bytes": "(result i64)", "reset": ""}
    for name, results in others.items():
        wasm = wat(
            f'(module (import "extism:host/env" "{name}" (func {results})) (memory (export "memory") 1)'
            ' (func (export "run")))'
        )
        with pytest.raises(ModuleRefused, match=name) as refused:
            check_module(wasm)
        assert refused.value.code == "imports_unknown"
        assert by_reference(reference, [Call("run")], wasm) == [End("answer")]


@page.shows("vars")
def test_vars_have_room_for_what_they_are(ours: LoadedFunction, reference: Executor) -> None:
    once: list[Step] = [(Op.TEXT, b"a"), (Op.ALLOC_ANYWHERE, 600_000), (Op.VAR_SET, Place(0), Place(1))]
    twice: list[Step] = [*once, (Op.TEXT, b"a"), (Op.ALLOC_ANYWHERE, 600_000), (Op.VAR_SET, Place(3), Place(4))]
    assert [end.how for end in ends(ours, reference, once)] == ["answer", "answer"]
    assert [end.how for end in ends(ours, reference, twice)] == ["answer", "refused"]
    full: list[Step] = [(Op.TEXT, b"a"), (Op.ALLOC_ANYWHERE, 1_100_000), (Op.VAR_SET, Place(0), Place(1))]
    assert [end.how for end in ends(ours, reference, full)] == ["refused", "refused"]


@page.shows("memory that is full")
def test_a_full_memory_is_told_to_the_plugin(reference: Executor, tmp_path: Path) -> None:
    steps: list[Step] = [(Op.ALLOC, 10_000_000), (Op.ALLOC, 8)]
    call = Call("traced", encoded(steps))
    with loading(tmp_path, abi="extism") as load:
        loaded = load("kernel_calls", limits=CallLimits(memory_pages=100))
        assert numbers(by_node(loaded, call)) == [0, 2]
    theirs = reference.submit(by_extism.calls, guest("kernel_calls"), [call], {}, (), False, 100).result()
    assert theirs == [End("error", b"oom")]


@page.shows("memory that begins with no page")
def test_a_memory_begins_with_a_page(reference: Executor, tmp_path: Path) -> None:
    fields = IMPORTS.replace('(memory (export "memory") 1)', '(memory (export "memory") 0)')
    wasm = wat(f'(module {fields} (func (export "run") (i32.store8 (i32.const 0) (i32.const 1)) (call $say)))')
    loaded = function(wasm, tmp_path, "interpreted")
    mine = by_node(loaded, Call("run"))
    loaded.close()
    assert (mine, by_reference(reference, [Call("run")], wasm)) == (End("answer", b"A"), [End("trap")])


@page.shows("lengths of 2⁴⁸ and more")
def test_no_block_is_as_long_as_that(ours: LoadedFunction, reference: Executor) -> None:
    steps: list[Step] = [(Op.ALLOC, 2**48 + 5), (Op.LENGTH, Place(0))]
    assert traces(ours, reference, steps) == ([0, 0], [1, 5])


@page.shows("addresses outside of blocks")
def test_what_lies_between_blocks(ours: LoadedFunction, reference: Executor) -> None:
    past: list[Step] = [TEXT, TEXT, (Op.STORE_U64, Place(0, 8), 0), (Op.LENGTH, Place(1))]
    assert traces(ours, reference, past) == ([1, 2, 0, 8], [1, 2, 0, 0])
    within: list[Step] = [(Op.TEXT, b"\1" * 40), (Op.LENGTH_UNSAFE, Place(0, 16))]
    assert traces(ours, reference, within) == ([1, 0], [1, 0x01010101])
    before: list[Step] = [TEXT, (Op.INPUT_LOAD_U64, 2**64 - 8)]
    mine, theirs = traces(ours, reference, before)
    assert (mine, theirs[1] != 0) == ([1, 0], True)


@page.shows("exit codes above 125")
def test_every_exit_code_is_told(ours: LoadedFunction, reference: Executor) -> None:
    for code in (126, 255, 2**31 - 1):
        mine, theirs = ends(ours, reference, [(Op.EXIT, code)])
        assert (mine, theirs.how) == (End("code", b"%d" % code), "refused")


@page.shows("texts of errors")
def test_an_error_that_is_no_text(ours: LoadedFunction, reference: Executor) -> None:
    mine, theirs = ends(ours, reference, [(Op.TEXT, b"a\xff"), (Op.ERROR_SET, Place(0))])
    assert (mine, theirs) == (End("error", "a\ufffd".encode()), End("error", b"a\xff"))


@page.shows("log")
def test_a_log_line_that_is_no_text(ours: LoadedFunction, reference: Executor) -> None:
    mine, theirs = ends(ours, reference, [(Op.TEXT, b"a\xff"), (Op.LOG_INFO, Place(0))])
    assert mine.log == b"<6>a\xff\n"
    assert theirs.log.startswith(b"<3>unable to log message")


@page.shows("stdout and stderr")
def test_what_goes_to_the_standard_streams(reference: Executor, tmp_path: Path) -> None:
    loaded = function(guest("plugin"), tmp_path, "compiled")
    mine, (theirs,) = by_node(loaded, Call("logs")), by_reference(reference, [Call("logs")], guest("plugin"))
    loaded.close()
    assert mine.log == theirs.log + b"stdout\nstderr\n"


@page.shows("JSON of a request by HTTP")
@pytest.mark.parametrize("more", ['"header": {}', '"more": 1', '"headers": null'])
def test_a_request_by_http_may_have_more_fields(
    ours: LoadedFunction, reference: Executor, site: str, more: str
) -> None:
    mine, theirs = requested(ours, reference, site, requesting(f'{{"url": "{site}/a", {more}}}'.encode()))
    assert [end.how for end in mine + theirs] == ["answer", "answer", "refused", "refused"]


@page.shows("JSON of a request by HTTP")
def test_a_request_by_http_may_be_its_body_too(ours: LoadedFunction, reference: Executor, site: str) -> None:
    text = b'{"url": "%s/a", "method": "POST"}' % site.encode()
    steps: list[Step] = [(Op.TEXT, text), (Op.HTTP_REQUEST, Place(0), Place(0)), (Op.LENGTH, Place(0))]
    # Freed once: a block of this size is found once, where the memory is full.
    mine, theirs = requested(ours, reference, site, steps)
    assert [end.how for end in mine + theirs] == ["answer", "answer", "refused", "refused"]


@page.shows("headers of an answer by HTTP")
def test_headers_of_an_answer_are_all_there(ours: LoadedFunction, reference: Executor, site: str) -> None:
    def headers(path: str) -> list[bytes]:
        text = b'{"url": "%s/%s"}' % (site.encode(), path.encode())
        # The handle of the headers is in slot 1; the length, which depends on the host, is in the trace.
        steps: list[Step] = [(Op.TEXT, text), (Op.HTTP_REQUEST, Place(0), 0), (Op.HTTP_HEADERS,)]
        lengths = [numbers(found[0])[5] for found in requested(ours, reference, site, steps)]
        answers = []
        for which, length in enumerate(lengths):
            found = requested(ours, reference, site, [*steps, (Op.OUTPUT_SET, Place(2), length)])
            answers.append(found[which][1].data)
        return answers

    assert headers("twice") == [b'{"content-length":"0","x-a":"1, 2"}', b'{"content-length":"0","x-a":"2"}']
    assert headers("latin") == ['{"content-length":"0","x-a":"ä"}'.encode(), b'{"content-length":"0"}']


@page.shows("headers of an answer by HTTP")
def test_headers_are_there_without_being_asked_for(ours: LoadedFunction, reference: Executor) -> None:
    call = Call("traced", encoded([(Op.HTTP_HEADERS,)]))
    assert numbers(by_node(ours, call))[:2] == [1, 2]
    theirs = reference.submit(by_extism.without_headers, guest("kernel_calls"), call).result()
    assert numbers(theirs)[:2] == [0, 0]


def test_the_page_has_each_difference() -> None:
    assert page.entries == page.shown
