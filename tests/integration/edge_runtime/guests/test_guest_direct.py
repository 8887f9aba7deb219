"""Functions of the ABI `direct` on WasmEdge: what they see and answer, and hostile ones."""

import orjson
import pytest

from edge_runtime.guests.guest import CallLimits, CallServices, GuestFault, Request
from edge_runtime.ipc import log_lines
from edge_runtime.wasmedge import LinkError
from tests.guests.build import guest, wat
from tests.support.functions import loading

MOST = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def aot(tmp_path_factory):
    return tmp_path_factory.mktemp("aot")


@pytest.fixture
def load(aot):
    with loading(aot, abi="direct") as made:
        yield made


def fault(loaded, request=None, services=None):
    with pytest.raises(GuestFault) as raised:
        loaded.call(request or Request("GET"), services or CallServices())
    return raised.value


@pytest.mark.parametrize("size", [0, 1, 256, 60_000, 65_536, 3_000_000])
def test_a_body_goes_through_whole(load, size):
    body = bytes(i * 7 % 256 for i in range(size % 1000)) + bytes(size - size % 1000)
    response = load(guest("direct_echo")).call(Request("POST", "/", body=body))
    assert (response.status, response.body) == (200, body)
    assert response.head == b"Content-Type: application/octet-stream\r\n"


def test_a_c_function_sees_the_request(load):
    request = Request(
        "PUT",
        "/echo",
        "q=1",
        [("x-thing", "7"), ("host", "h")],
        b"",
        "192.0.2.1",
        script="/orders",
        route="/orders/{id}",
        params=[("id", "a b\xff")],
    )
    lines = load(guest("direct")).call(request).body.split(b"\n")
    assert lines == [
        b"method PUT",
        b"path /echo",
        b"query q=1",
        b"script /orders",
        b"route /orders/{id}",
        b"params id=a%20b%FF",
        b"client 192.0.2.1",
        b"x-thing 7",
        b"id a b\xff",
        b"x-thing: 7",
        b"host: h",
        b"",
    ]

    request = Request("GET", "/echo", route="/{all...}", params=[("all", "echo")])
    assert load(guest("direct")).call(request).body.split(b"\n")[3:5] == [b"script ", b"route /{all...}"]


def test_config_is_its_environment_and_output_its_log(load):
    loaded = load(guest("direct"), CallLimits(log_bytes=12), {"GREETING": "ü"})
    assert loaded.call(Request("GET", "/env", "name=GREETING")).body == "ü".encode()
    assert loaded.call(Request("GET", "/env", "name=PATH")).status == 404
    logged = loaded.call(Request("GET", "/log"))
    assert (logged.body, logged.log) == (b"logged", b"to stdout\nto\n" + log_lines.LINE % 7)
    assert loaded.call(Request("GET", "/env", "name=X")).log == b""


class Answers:
    def execute(self, request):
        return b'{"asked":%b}' % request


def test_it_asks_for_sql(load):
    loaded = load(guest("direct"))
    asked = Request("POST", "/sql", body=b'{"sql":"SELECT 1"}')
    assert orjson.loads(loaded.call(asked, CallServices(Answers())).body) == {"asked": {"sql": "SELECT 1"}}
    assert orjson.loads(loaded.call(asked).body)["error"]["code"] == "not_granted"


@pytest.mark.parametrize(
    ("path", "query", "code", "text"),
    [
        ("/trap", "", "guest_trap", "It trapped: unreachable"),
        ("/exit", "code=3", "guest_exit", "the exit code 3"),
        ("/exit", "code=0", "guest_exit", "the exit code 0"),
        ("/status", "code=99", "guest_response_invalid", "it answered the status 99"),
    ],
)
def test_faults(load, path, query, code, text):
    raised = fault(load(guest("direct")), Request("GET", path, query))
    assert (raised.code, raised.status) == (code, 502)
    assert text in str(raised)


def test_a_request_that_no_piece_can_hold(load):
    raised = fault(load(guest("direct_echo")), Request("GET", headers=[("X", "あ")]))
    assert (raised.code, raised.status) == ("request_unfit", 400)


def test_the_response_limit_is_exact(load):
    loaded = load(guest("direct_echo"), CallLimits(response_bytes=1000))
    assert len(loaded.call(Request("POST", body=bytes(1000))).body) == 1000
    for size in (1001, 200_000):
        raised = fault(loaded, Request("POST", body=bytes(size)))
        assert (raised.code, raised.status) == ("response_too_large", 507)
        assert "response_limit is 1000 bytes" in str(raised)


def test_every_call_has_a_fresh_instance(load):
    counts = wat("""(module (memory (export "memory") 1)
      (data (i32.const 0) "\\c8\\00\\00\\00\\10\\00\\00\\00Content-Type: t\\n0")
      (func (export "_initialize") (i32.store8 (i32.const 24) (i32.add (i32.load8_u (i32.const 24)) (i32.const 1))))
      (func (export "skerry_alloc") (param i32) (result i32) (i32.const 1000))
      (func (export "skerry_handle") (param i32 i32) (result i64) (i64.const 25)))""")
    loaded = load(counts)
    assert [loaded.call(Request("GET")).body for _ in range(3)] == [b"1"] * 3, "and _initialize has run once"


def hostile(alloc, handle, memory="1", fields=""):
    return wat(f"""(module {fields} (memory (export "memory") {memory})
      (func (export "skerry_alloc") (param i32) (result i32) {alloc})
      (func (export "skerry_handle") (param i32 i32) (result i64) {handle}))""")


def packed(start, size):
    return f"(i64.or (i64.shl (i64.const {start}) (i64.const 32)) (i64.const {size}))"


GOOD = "(i32.const 1024)"


@pytest.mark.parametrize("room", [0, 65_535, 65_536, -1, 0x7FFFFFFF])
def test_room_that_is_none(load, room):
    raised = fault(load(hostile(f"(i32.const {room})", "unreachable")))
    assert (raised.code, raised.status) == ("guest_call_invalid", 502)
    assert "Its skerry_alloc" in str(raised)


@pytest.mark.parametrize(
    ("start", "size", "text"),
    [
        (65_536, 8, "outside its memory"),
        (65_529, 8, "outside its memory"),
        (0xFFFFFFFF, 8, "outside its memory"),
        (0xFFFFFFF8, 16, "outside its memory"),
        (0, 65_537, "outside its memory"),
        (65_536, 0, "answered 0 bytes"),
        (0, 7, "answered 7 bytes"),
        (0, 16, "answered the status 0"),
    ],
)
def test_answers_outside_or_of_nothing(load, start, size, text):
    raised = fault(load(hostile(GOOD, packed(start, size))))
    assert (raised.code, raised.status) == ("guest_response_invalid", 502)
    assert text in str(raised)


def test_an_answer_of_four_gigabytes(load):
    raised = fault(load(hostile(GOOD, packed(0, 0xFFFFFFFF))))
    assert (raised.code, raised.status) == ("response_too_large", 507)


def test_head_lines_that_end_outside_the_answer(load):
    lies = "(i32.store (i32.const 8) (i32.const 200)) (i32.store (i32.const 12) (i32.const 70000))"
    raised = fault(load(hostile(GOOD, lies + packed(8, 16))))
    assert raised.code == "guest_response_invalid"
    assert "answered 16 bytes with 70000 of header lines; at most 8 are possible" in str(raised)


def test_memory_that_grows_in_between(load):
    grows = "(drop (memory.grow (i32.const 3)))"
    answers = "(i32.store (i32.const 200000) (i32.const 201))" + packed(200_000, 8)
    loaded = load(hostile(grows + "(i32.const 131072)", answers))
    assert loaded.call(Request("POST", body=bytes(1000))).status == 201


def test_entries_of_another_type_or_none(load):
    other = wat("""(module (memory (export "memory") 1) (func (export "skerry_alloc") (param i64))
      (func (export "skerry_handle") (param i32 i32) (result i64) (i64.const 0)))""")
    assert fault(load(other)).code == "guest_trap"
    with pytest.raises(LinkError, match="no function skerry_alloc"):
        load(guest("echo"))
