"""Extism plug-ins: what their functions get and answer, compiled and on the interpreter, and each way to fail."""

import hashlib

import orjson
import pytest

from control.protocol.manifest import Manifest
from edge_runtime.guests.guest import CallLimits, CallServices, GuestFault, LoadedFunction, Request
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.wasmedge import BEST, LinkError, LoadError, Unsafe, memory
from edge_runtime.wasmedge.c_api import ffi
from tests.guests.build import guest, wat
from tests.support.edge import node
from tests.support.functions import compiled, loading, local

IMPORTS = """
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "log_info" (func $log (param i64)))
"""
SAY = """
  (func $say (param $byte i32) (result i32)
    (local $at i64)
    (call $store (local.tee $at (call $alloc (i64.const 1))) (local.get $byte))
    (call $output (local.get $at) (i64.const 1))
    (i32.const 0))
"""


def plugin(*fields, memory='(memory (export "memory") 1)'):
    return wat(f"(module {IMPORTS} {memory} {SAY} {' '.join(fields)})")


@pytest.fixture(scope="module")
def aot(tmp_path_factory):
    return tmp_path_factory.mktemp("aot")


@pytest.fixture
def load(aot):
    with loading(aot, abi="extism") as made:
        yield lambda wasm="plugin", *more, **manifest: made(wasm, *more, **manifest)


def uncompiled(wasm, folder):
    digest = hashlib.sha256(wasm).hexdigest()
    path = folder / f"{digest}.wasm"
    path.write_bytes(wasm)
    return LocalFunction("f", 1, digest, Manifest(abi="extism"), "", wasm=str(path))


@pytest.fixture(scope="module", params=["compiled", "at the best level", "on the interpreter"])
def every(request, aot):
    """The plug-in, in each of the ways in which it can run."""
    wasm = guest("plugin")
    if request.param == "on the interpreter":
        code = uncompiled(wasm, aot)
    else:
        level = {"level": BEST} if "best" in request.param else {}
        code = local(compiled(wasm, aot, **level), abi="extism")
    loaded = LoadedFunction.load(code)
    yield loaded
    loaded.close()


def call(loaded, name, body=b"", services=None):
    return loaded.call(Request("POST", f"/{name}", body=body), services or CallServices())


def fault(loaded, name, body=b"", services=None):
    with pytest.raises(GuestFault) as raised:
        call(loaded, name, body, services)
    return raised.value


class Recorder:
    """Answers each request with the next of `answers`."""

    def __init__(self, *answers):
        self.asked, self.answers = [], [orjson.dumps(answer) for answer in answers]

    def execute(self, request):
        self.asked.append(orjson.loads(request))
        return self.answers.pop(0)

    fetch = execute


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 256, 65519, 65536, 1_000_003])
def test_the_body_is_the_input_and_the_output_is_the_answer(every, size):
    body = bytes(i * 7 % 251 for i in range(size % 1000)) + bytes(size - size % 1000)
    for name in ("echo", "own_input"):
        answer = call(every, name, body)
        assert (answer.status, answer.head) == (200, b"content-type: application/octet-stream\r\n")
        assert answer.body == body


def test_each_call_has_an_instance_of_its_own_begun_by_initialize(every):
    for _ in range(2):
        assert call(every, "state").body == b"begun 7, calls 1"


def test_nothing_of_a_call_is_left_for_the_next(every):
    for _ in range(2):
        assert call(every, "traces").body == b"0"
        assert call(every, "soil").body == b"soiled"


def test_a_function_that_returns_nothing(every):
    assert call(every, "nothing").body == b""


def test_vars_live_for_a_call(every):
    for _ in range(2):
        assert call(every, "vars").body == b"one second, two 0, three 0"


def test_a_loop_over_a_var_needs_no_more_memory(load):
    assert call(load(limits=CallLimits(memory_pages=16)), "many_vars").body == b"done"


def test_everything_logged_is_in_the_call_s_log(every):
    answer = call(every, "logs")
    assert answer.log == (b"<7>one\n<7>two\n<6>three\n<4>four\n<3>0\n<6>\nstdout\nstderr\n"), (
        "levels, stdout and stderr, in their order"
    )


def test_the_log_has_a_bound(load):
    loaded = load(limits=CallLimits(log_bytes=20))
    assert call(loaded, "logs").log == (
        b"<7>one\n<7>two\n<6>thr\n<4>[skerry: 34 bytes of this log were left out here]\n"
    )


def test_config_and_secrets(aot):
    code = local(compiled(guest("plugin"), aot), abi="extism", config={"thing.of-mine": "value ü"})
    loaded = LoadedFunction.load(code, {"API_KEY": "hidden"})
    assert call(loaded, "config", b"thing.of-mine").body == "value ü".encode()
    assert call(loaded, "config", b"API_KEY").body == b"hidden"
    for other in (b"", b"PATH", b"thing"):
        assert call(loaded, "config", other).body == b"none"
    loaded.close()


def test_config_says_what_the_answer_is(load):
    loaded = load(config={"content-type": "application/json; charset=utf-8"})
    assert call(loaded, "nothing").head == b"content-type: application/json; charset=utf-8\r\n"
    for wrong in ("hidden\r\nset-cookie: b", ""):
        with pytest.raises(LoadError, match="content-type") as error:
            load(config={"content-type": wrong})
        assert "hidden" not in str(error.value)


def test_sql_and_http_of_the_host_in_json(every):
    sql, http = Recorder({"rows": [["ü"]]}), Recorder({"status": 200})
    services = CallServices(sql, http)
    assert orjson.loads(call(every, "sql", b'{"sql": "SELECT 1"}', services).body) == {"rows": [["ü"]]}
    assert sql.asked == [{"sql": "SELECT 1"}]
    assert orjson.loads(call(every, "ask", b'{"url": "https://a.example"}', services).body) == {"status": 200}
    assert http.asked == [{"url": "https://a.example"}]


def test_what_is_not_granted_is_an_error_that_it_can_read(every):
    for name in ("sql", "ask"):
        assert orjson.loads(call(every, name, b"{}").body)["error"]["code"] == "not_granted"


def test_http_request(every):
    headers = [["Content-Type", "text/plain"], ["X-A", "1"], ["x-a", "2"]]
    http = Recorder({"status": 418, "headers": headers, "body": "tea"})
    asked = orjson.dumps({"url": "https://a.example/b", "method": "put", "headers": {"X-Name": "value"}})
    answer = call(every, "fetch", asked + b"\nthe body", CallServices(http=http)).body
    assert answer == b'418 {"content-type":"text/plain","x-a":"1, 2"} tea'
    expected = {"method": "PUT", "url": "https://a.example/b", "headers": [["X-Name", "value"]]}
    assert http.asked == [{**expected, "body": {"$blob": "dGhlIGJvZHk="}}]


def test_http_request_with_no_more_than_a_url(every):
    http = Recorder(*[{"status": 200, "headers": [], "body": {"$blob": "/wAA"}}] * 2)
    for headers in (b'"headers": null', b'"header": {"X": "y"}'):
        answer = call(every, "fetch", b'{"url": "https://a.example", %b}' % headers, CallServices(http=http))
        assert answer.body == b"200 {} \xff"
    asked = {"method": "GET", "url": "https://a.example"}
    assert http.asked == [{**asked, "headers": []}, {**asked, "headers": [["X", "y"]]}]


@pytest.mark.parametrize("asked", [b"", b"{", b"[]", b'{"method": "GET"}', b'{"url": "x", "headers": [1]}', b'"x"'])
def test_an_http_request_that_is_none(every, asked):
    found = fault(every, "fetch", asked, CallServices(http=Recorder()))
    assert (found.code, found.status) == ("guest_call_invalid", 502)
    assert "http_request" in str(found)


def test_an_http_request_that_fails_ends_the_call_as_extism_has_it(every):
    refused = Recorder({"error": {"code": "not_granted", "message": "No grant for b.example."}})
    found = fault(every, "fetch", b'{"url": "https://b.example"}', CallServices(http=refused))
    assert (found.code, found.status) == ("guest_http_failed", 502)
    assert "(not_granted): No grant for b.example." in str(found)
    assert "not_granted" in str(fault(every, "fetch", b'{"url": "https://b.example"}'))


@pytest.mark.parametrize(
    ("name", "body", "text"),
    [
        ("fail", b"", "It says: a message"),
        ("fail", b"no \xff text", "It says: no \ufffd text"),
        ("fail_though_0", b"", "It says: a message"),
        ("fail_silently", b"", "It returned -3 from fail_silently"),
        ("fail_and_trap", b"", "It says: last words"),
        ("leave", b"5", "It returned 5 from leave"),
        ("leave", b"-1", "It returned -1 from leave"),
    ],
)
def test_its_own_errors(every, name, body, text):
    found = fault(every, name, body)
    assert (found.code, found.status) == ("guest_error", 502)
    assert text in str(found)
    assert call(every, "echo", b"on").body == b"on"


def test_an_error_is_cut(every):
    assert 4096 <= len(str(fault(every, "fail_at_length"))) < 5000


def test_an_exit_with_0_is_an_end_like_another(every):
    assert call(every, "leave", b"0").body == b"said before"


def test_a_trap(every):
    assert fault(every, "trap").code == "guest_trap"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("bad_handle", b"529"),
        ("bad_handle", b"17"),
        ("bad_handle", b"18446744073709551615"),
    ],
)
def test_addresses_that_lead_nowhere(every, name, body):
    found = fault(every, name, body)
    assert (found.code, found.status) == ("guest_call_invalid", 502)


@pytest.mark.parametrize("at", [b"3", b"65500", b"4294967295", b"18446744073709551615"])
def test_an_output_or_error_outside_the_memory_is_none(every, at):
    assert call(every, "output_outside", at).body == b""
    found = fault(every, "error_outside", at)
    assert (found.code, "It returned 1" in str(found)) == ("guest_error", True)


def test_a_spoilt_kernel_costs_its_own_call(every):
    found = fault(every, "spoil")
    assert found.code in ("guest_call_invalid", "guest_memory_full")
    assert call(every, "traces").body == b"0"
    assert call(every, "echo", b"on").body == b"on"


def test_limits(load):
    loaded = load(limits=CallLimits(response_bytes=1000, memory_pages=64))
    assert len(call(loaded, "large", b"1000").body) == 1000
    assert fault(loaded, "large", b"1001").code == "response_too_large"
    # 4 MiB, less what the kernel has in the first page.
    assert call(loaded, "hog").body == b"3 blocks"
    found = fault(loaded, "echo", bytes(64 * 65536))
    assert (found.code, found.status) == ("guest_memory_full", 507)


def test_vars_have_a_bound(load):
    loaded = load()
    assert call(loaded, "fill_vars", b"10").body == b"filled"
    found = fault(loaded, "fill_vars", b"11")
    assert (found.code, found.status) == ("guest_vars_full", 507)


# Which function


def test_the_function_is_the_path_s_last_part_or_the_manifest_s(load):
    loaded = load(entry="config")
    for path in ("", "/"):
        assert loaded.call(Request("GET", path)).body == b"none"
    for path in ("/state", "/a/b/state", "/state/", "/st%61te"):
        assert loaded.call(Request("GET", path)).body == b"begun 7, calls 1"
    route = Request("GET", "/42/state", script="/things", route="/things/{id}")
    assert loaded.call(route).body == b"none", "the path of a route names no function"


@pytest.mark.parametrize("name", ["", "nobody", "memory", "_initialize", "state/nobody", "extism:host/env memory"])
def test_a_function_that_is_not_there(load, name):
    found = fault(load(), name)
    assert (found.code, found.status) == ("entry_unknown", 404)
    assert "echo" in str(found)
    assert "_initialize" not in str(found).partition("it has")[2]


def test_a_default_that_is_not_there(load):
    assert fault(load(entry="nobody"), "").code == "entry_unknown"


# How languages begin


def test_a_start_section_runs_first_and_may_call_the_host(load, aot):
    wasm = plugin(
        "(global $begun (mut i32) (i32.const 48))",
        "(func $begin (local $at i64) (global.set $begun (i32.const 57))",
        "(call $store (local.tee $at (call $alloc (i64.const 1))) (i32.const 120)) (call $log (local.get $at)))",
        '(func (export "run") (result i32) (call $say (global.get $begun)))',
        "(start $begin)",
    )
    for loaded in (load(wasm), LoadedFunction.load(uncompiled(wasm, aot))):
        answer = call(loaded, "run")
        assert (answer.body, answer.log) == (b"9", b"<6>x\n")


@pytest.mark.parametrize(
    ("exports", "digit"),
    [
        ('(export "__wasm_call_ctors" (func $add))', b"1"),
        ('(export "_initialize" (func $add))', b"1"),
        # Then _initialize has called the constructors.
        ('(export "__wasm_call_ctors" (func $add)) (export "_initialize" (func $add))', b"1"),
        ('(export "_initialize" (func $add)) (export "hs_init" (func $haskell))', b"3"),
        ('(export "hs_init" (func $haskell))', b"2"),
        ("", b"0"),
    ],
)
def test_what_languages_have_called_first(load, exports, digit):
    wasm = plugin(
        "(global $begun (mut i32) (i32.const 48))",
        "(func $add (global.set $begun (i32.add (global.get $begun) (i32.const 1))))",
        "(func $haskell (param i32 i32) (call $add) (call $add) (if (local.get 0) (then unreachable)))",
        exports,
        '(func (export "run") (result i32) (call $say (global.get $begun)))',
    )
    assert call(load(wasm), "run").body == digit


def test_a_command_is_called_by_its_start_function(load):
    wasm = plugin('(func (export "_start") (drop (call $say (i32.const 65))))')
    assert call(load(wasm, entry="_start"), "").body == b"A"


def test_a_memory_that_begins_with_no_page(load):
    """As AssemblyScript has it without static data."""
    wasm = plugin(
        '(func (export "run") (result i32) (i32.store8 (i32.const 65535) (i32.const 66))'
        " (call $say (i32.load8_u (i32.const 65535))))",
        memory='(memory (export "memory") 0)',
    )
    assert call(load(wasm), "run").body == b"B"


def test_what_is_no_plugin(load):
    with pytest.raises(LinkError, match="extism:host/env memory"):
        load(guest("echo"))


@pytest.mark.parametrize(("base", "pages"), [(ffi.NULL, 2), (ffi.cast("uint8_t *", 4096), 0)])
def test_a_kernel_memory_that_was_not_reserved(load, monkeypatch, base, pages):
    """Each of the two memories is looked at before anything of the plug-in runs: here only the second is missing."""
    loaded, bases = load(), []
    first = loaded.runner.program._limits[0][0]
    monkeypatch.setattr(memory, "_memory_pages", lambda pointer: first if len(bases) == 1 else pages)

    def found(pointer, start, length):
        bases.append(pointer)
        return ffi.cast("uint8_t *", 4096) if len(bases) == 1 else base

    monkeypatch.setattr(memory, "_memory_pointer", found)
    with pytest.raises(Unsafe, match="nothing was run"):
        call(loaded, "echo")
    assert len(set(bases)) == 2


# Through a node


async def test_a_plugin_on_a_node(tmp_path):
    async with node(tmp_path / "state") as edge:
        manifest = {"abi": "extism", "entry": "state", "sql": "write", "config": {"content-type": "application/json"}}
        await edge.release({"plug": (guest("plugin"), manifest)})
        status, headers, body = await edge.call("plug/echo", bytes(range(256)) * 300)
        assert (status, body) == (200, bytes(range(256)) * 300)
        assert headers["content-type"] == "application/json"
        assert (await edge.call("plug"))[2] == b"begun 7, calls 1"
        status, _, body = await edge.call("plug/sql", b'{"sql": "SELECT 40 + ?", "params": [2]}')
        assert (status, orjson.loads(body)["rows"]) == (200, [[42]])
        status, _, body = await edge.call("plug/fail")
        assert (status, orjson.loads(body)["code"]) == (502, "guest_error")
        assert "a message" in orjson.loads(body)["detail"]
        assert (await edge.call("plug/nobody"))[0] == 404
