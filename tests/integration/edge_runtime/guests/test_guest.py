"""One call of one function, on WasmEdge, from AOT code: what it answers, and what each way to fail is called."""

import orjson
import pytest

from edge_runtime.guests.guest import CallLimits, CallServices, GuestFault, Request
from edge_runtime.wasmedge import LinkError
from tests.guests.build import guest, wat
from tests.guests.version import version
from tests.support.functions import function, loading


@pytest.fixture(scope="module")
def aot(tmp_path_factory):
    return tmp_path_factory.mktemp("aot")


@pytest.fixture
def load(aot):
    with loading(aot) as made:
        yield made


class Recorder:
    """Answers each statement with the next of `answers`; one that is an exception is raised."""

    def __init__(self, *answers):
        self.asked, self.answers = [], list(answers)

    def execute(self, request):
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def fault(loaded, request=None, sql=None):
    with pytest.raises(GuestFault) as raised:
        loaded.call(request or Request("GET"), CallServices(sql))
    return raised.value


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("a%20b+c%C3%a9", "a b cé"),
        ("%zz%4%", "%zz%4%"),
        ("%&x=1", "%"),
        ("%4&x=1", "%4"),
        ("a%00b", "a%00b"),
        ("%+1%-1% 1", "% 1%-1% 1"),
        ("a=b", "a=b"),
    ],
)
def test_the_c_header_decodes_a_parameter(load, sent, read):
    request = Request("POST", query=f"xlog=no&log={sent}", body=b"Content-Type: a/b\n\n")
    assert load("raw").call(request).log == read.encode()


@pytest.mark.parametrize("size", [0, 1, 256, 65535, 65536, 65537, 3_000_000])
def test_a_body_goes_through_whole(load, size):
    body = bytes(i * 7 % 256 for i in range(size % 1000)) + bytes(size - size % 1000)
    response = load("echo").call(Request("POST", "/", body=body))
    assert response.status == 200
    assert response.head == b"Content-Type: application/octet-stream\r\n"
    assert response.body == body


def test_the_request_is_in_the_environment(load):
    request = Request("PUT", "/a%20b", "q=1", [("X-Id", "7"), ("Host", "h:1")], b"", "192.0.2.1")
    lines = load("env", config={"MODE": "ü"}).call(request).body.decode().splitlines()
    assert lines[:2] == ["argument 0: /functions/f/a%20b", "argument 1: q=1"]
    for line in (
        "REQUEST_METHOD=PUT",
        "SCRIPT_NAME=/functions/f",
        "PATH_INFO=/a b",
        "QUERY_STRING=q=1",
        "HTTP_X_ID=7",
        "SERVER_PORT=1",
        "REMOTE_ADDR=192.0.2.1",
        "MODE=ü",
    ):
        assert line in lines
    assert not any(line.startswith(("PATH=", "HOME=", "PWD=")) for line in lines), "the host's environment shows"


def test_status_headers_and_log(load):
    response = load("raw").call(
        Request("GET", query="log=hello+log", body=b"Status: 418\nX-A: 1\nX-A: 2\nContent-Type: t/p\n\nbody"), None
    )
    assert (response.status, response.body, response.log) == (418, b"body", b"hello log")
    assert response.head == b"X-A: 1\r\nX-A: 2\r\nContent-Type: t/p\r\n"


def test_the_log_is_cut(load):
    good = b"Content-Type: t/p\n\n"
    request = Request("GET", query="log=" + "x" * 4000, body=good)
    lost = b"\n<4>[skerry: 3900 bytes of this log were left out here]\n"
    assert load("raw", CallLimits(log_bytes=100)).call(request).log == b"x" * 100 + lost
    # As much as there is room for is whole.
    assert load("raw", CallLimits(log_bytes=4000)).call(request).log == b"x" * 4000


def test_one_call_leaves_nothing_to_the_next(load):
    loaded = load("raw")
    good = b"Content-Type: t/p\n\n"
    assert loaded.call(Request("GET", query="log=secret", body=good + b"first")).body == b"first"
    second = loaded.call(Request("GET", body=good))
    assert (second.body, second.log) == (b"", b"")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("trap", "unreachable (0x40a)"),
        ("divide", "integer divide by zero (0x404)"),
        ("bounds", "out of bounds memory access (0x408)"),
    ],
)
def test_a_trap(load, name, reason):
    loaded = load(name, CallLimits(memory_pages=9))
    for _ in range(3):
        raised = fault(loaded)
        assert (raised.code, raised.status) == ("guest_trap", 502)
        assert f"The function f failed. It trapped: {reason}." in str(raised)
        assert "1 of 9 pages" in str(raised)


def test_a_refused_memory_shows_as_a_trap_with_pages_and_limit(load):
    raised = fault(load("hog", CallLimits(memory_pages=40)))
    assert raised.code == "guest_trap"
    assert "33 of 40 pages (64 KiB each)" in str(raised)
    assert "memory_pages" in str(raised)


def test_an_exit_code(load):
    raised = fault(load("exit"))
    assert (raised.code, raised.status) == ("guest_exit", 502)
    assert "exit code 3" in str(raised)
    good = b"Content-Type: t/p\n\n"
    assert load("raw").call(Request("GET", query="exit=0", body=good)).status == 200
    assert fault(load("raw"), Request("GET", query="exit=200&log=why", body=good)).log == b"why"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (b"", "it wrote nothing to stdout"),
        (b"hello", "without the blank line"),
        (b"Status: 999\n\n", "Status: '999'"),
        (b"Content-Type: a\nTransfer-Encoding: chunked\n\n", "Transfer-Encoding"),
        (b"Content-Type: a\nX: \x01\n\n", "control character"),
    ],
)
def test_an_invalid_response(load, output, reason):
    raised = fault(load("raw"), Request("GET", body=output))
    assert (raised.code, raised.status) == ("guest_response_invalid", 502)
    assert reason in str(raised)


def test_a_huge_response(load):
    raised = fault(load("huge", CallLimits(response_bytes=1_000_000)))
    assert (raised.code, raised.status) == ("response_too_large", 507)
    assert "response_limit is 1000000 bytes" in str(raised)


def test_the_response_limit_is_exact(load):
    loaded = load("echo", CallLimits(response_bytes=1000))
    assert len(loaded.call(Request("POST", body=bytes(1000))).body) == 1000
    raised = fault(loaded, Request("POST", body=bytes(1001)))
    assert (raised.code, raised.status) == ("response_too_large", 507)
    assert "1001 bytes" in str(raised)


@pytest.mark.parametrize("request_", [Request("GET", "/%00"), Request("GET", "/", headers=[("X", "あ")])])
def test_a_request_that_no_environment_can_hold(load, request_):
    raised = fault(load("echo"), request_)
    assert (raised.code, raised.status) == ("request_unfit", 400)


def test_sql_passes_through_in_both_directions(load):
    answers = [b'{"columns":["a"],"rows":[[1]]}', b"x" * 200_000]
    sql = Recorder(*answers)
    response = load("sql").call(
        Request("POST", body=b'{"sql":"SELECT 1"}\n{"sql":"\xe3\x81\x82"}\n'), CallServices(sql)
    )
    assert sql.asked == [b'{"sql":"SELECT 1"}', b'{"sql":"\xe3\x81\x82"}']
    assert response.body == answers[0] + b"\n" + answers[1] + b"\n"


def test_sql_without_a_grant_is_an_error_that_the_guest_sees(load):
    response = load("sql").call(Request("POST", body=b'{"sql":"SELECT 1"}'))
    assert orjson.loads(response.body)["error"]["code"] == "not_granted"


class Stale(BaseException):
    """What ends a call from inside a statement."""


@pytest.mark.parametrize("error", [Stale(), RuntimeError("database gone")])
def test_what_sql_raises_ends_the_guest_and_comes_out(load, error):
    loaded = load("sql")
    with pytest.raises(type(error)) as raised:
        loaded.call(Request("POST", body=b"one\ntwo\n"), CallServices(Recorder(error, b"never")))
    assert raised.value is error
    assert loaded.call(Request("POST", body=b"one"), CallServices(Recorder(b"{}"))).body == b"{}\n"


SQL_MISUSE = {
    "request outside": "(drop (call $sql (i32.const 65530) (i32.const 7)))",
    "request far outside": "(drop (call $sql (i32.const -1) (i32.const -1)))",
    "result without an answer": "(call $result (i32.const 0))",
    "result twice": "(drop (call $sql (i32.const 0) (i32.const 1)))"
    "(call $result (i32.const 0)) (call $result (i32.const 0))",
    "result outside": "(drop (call $sql (i32.const 0) (i32.const 1))) (call $result (i32.const 65535))",
}


@pytest.mark.parametrize("body", SQL_MISUSE.values(), ids=SQL_MISUSE)
def test_sql_called_wrongly(load, body):
    wasm = wat(f"""(module
      (import "skerry" "sql" (func $sql (param i32 i32) (result i32)))
      (import "skerry" "result" (func $result (param i32)))
      (memory (export "memory") 1) (func (export "_start") {body}))""")
    raised = fault(load(wasm), sql=Recorder(b"{}", b"{}"))
    assert (raised.code, raised.status) == ("guest_call_invalid", 502)
    assert "skerry." in str(raised)


def test_a_start_section_runs_once_in_each_instance(load):
    loaded = load("start")
    assert [loaded.call(Request("GET")).body for _ in range(3)] == [b"1"] * 3


def test_a_start_section_that_traps_or_calls_out(load):
    traps = wat('(module (memory (export "memory") 1) (func $s unreachable) (start $s) (func (export "_start")))')
    assert fault(load(traps)).code == "guest_trap"
    early = wat("""(module (import "skerry" "sql" (func $sql (param i32 i32) (result i32)))
      (memory (export "memory") 1) (func $s (drop (call $sql (i32.const 0) (i32.const 8)))) (start $s)
      (func (export "_start")))""")
    sql = Recorder(b"{}")
    assert fault(load(early), sql=sql).code == "guest_response_invalid"
    assert sql.asked == [bytes(8)], "it runs when its memory has been checked, and can ask as the entry can"


def test_a_module_that_can_not_be_instantiated(load):
    misfit = wat('(module (memory (export "memory") 1) (func (export "_start")) (data (i32.const 65536) "x"))')
    raised = fault(load(misfit))
    assert raised.code in ("guest_unlinkable", "guest_trap")
    assert load("echo").call(Request("POST", body=b"x")).body == b"x"


def test_a_declared_memory_above_the_limit_is_refused_and_not_clamped(load):
    with pytest.raises(LinkError, match="starts with 3 pages; 1 to 2 are allowed"):
        load("huge", CallLimits(memory_pages=2))


def test_a_closed_function_is_closed(aot):
    closed = function(guest("echo"), aot)
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.call(Request("GET"))


def test_many_traps_between_good_calls_harm_nothing(load):
    echo, trap, exits = load("echo"), load("trap"), load("exit")
    for number in range(500):
        body = b"%d" % number
        assert fault(trap).code == "guest_trap"
        assert fault(exits).code == "guest_exit"
        assert echo.call(Request("POST", body=body)).body == body


@pytest.mark.parametrize("number", [1, 40, 12345])
def test_version_modules_answer_their_number_and_the_schemas(load, number):
    loaded, sql = load(version(number)), Recorder(b'{"columns":["number"],"rows":[[7]]}', b'{"error":{"code":"x"}}')
    assert orjson.loads(loaded.call(Request("GET"), CallServices(sql)).body) == {
        "version": number,
        "schema": {"columns": ["number"], "rows": [[7]]},
    }
    failed = loaded.call(Request("GET"), CallServices(sql))
    assert (failed.status, orjson.loads(failed.body)["schema"]["error"]["code"]) == (500, "x")
    assert sql.asked == [b'{"sql":"SELECT number FROM generation","params":[]}'] * 2
