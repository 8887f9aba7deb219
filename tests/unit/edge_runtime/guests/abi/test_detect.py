"""Which ABI a module speaks, or why it is refused: from its bytes alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.guests.abi import binary
from edge_runtime.guests.abi.detect import ModuleRefused, detect
from tests.guests.build import guest, wat
from tests.support.draws import examples

ENTRY = '(func (export "_start"))'
MEMORY = '(memory (export "memory") 1)'
GROW = "(func (drop (table.grow 0 (ref.null func) (i32.const 1))))"


def module(*fields):
    return wat(f"(module {' '.join(fields)})")


def test_a_wagi_module():
    found = detect(
        module(
            '(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))',
            '(memory (export "memory") 3 7)',
            ENTRY,
        )
    )
    assert (found.abi, found.memory_pages, found.memory_maximum, found.sql, found.start) == ("wagi", 3, 7, False, False)


def test_sql_and_a_start_section_are_seen():
    sql = '(import "skerry" "sql" (func (param i32 i32) (result i32))) (import "skerry" "result" (func (param i32)))'
    found = detect(module(sql, MEMORY, ENTRY, "(func $s)", "(start $s)"))
    assert found.sql
    assert found.start
    assert found.memory_maximum is None


def test_what_languages_build_is_accepted():
    assert detect(guest("echo")).abi == "wagi"
    assert detect(guest("sql")).sql


def test_local_variables_within_the_bounds_are_accepted():
    assert detect(with_locals(*[50_000] * 40)).abi == "wagi"


LENGTH = '(import "extism:host/env" "length" (func (param i64) (result i64)))'
CALLED = '(func (export "run") (result i32) (i32.const 0))'


@pytest.mark.parametrize(
    "fields",
    [
        (LENGTH, MEMORY, CALLED),
        (LENGTH, MEMORY, '(func (export "run"))'),
        (LENGTH, MEMORY, ENTRY),
        (LENGTH, '(memory (export "memory") 0)', CALLED),
        ('(import "extism:host/user" "http" (func (param i64) (result i64)))', MEMORY, CALLED),
        (LENGTH, '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))', MEMORY, CALLED),
        (LENGTH, MEMORY, CALLED, '(func (export "skerry_handle") (param i32 i32) (result i64) (i64.const 0))'),
    ],
)
def test_an_extism_plugin(fields):
    found = detect(module(*fields))
    assert (found.abi, found.memory_pages, found.sql) == ("extism", 1, False)


def test_a_plugin_s_sql_is_seen():
    sql = '(import "extism:host/user" "sql" (func (param i64) (result i64)))'
    assert detect(module(sql, MEMORY, CALLED)).sql


def test_tables_that_stay_small_are_accepted():
    assert detect(module("(table 1 funcref)", MEMORY, ENTRY)).abi == "wagi"
    assert detect(module("(table 1 1000 funcref)", GROW, MEMORY, ENTRY)).abi == "wagi"


@pytest.mark.parametrize("opcode", [b"\x0f", b"\x8f\0", b"\x8f\x80\0", b"\x8f\x80\x80\x80\0"])
def test_a_growing_table_is_seen_however_its_opcode_is_written(opcode):
    wasm = module("(table 1 funcref)", GROW, MEMORY, ENTRY)
    code = wasm.index(b"\xfc\x0f")
    other = bytearray(wasm.replace(b"\xfc\x0f", b"\xfc" + opcode))
    longer = len(opcode) - 1
    section = wasm.rindex(b"\x0a", 0, code - 6)
    other[section + 1] += longer
    other[section + 3] += longer
    with pytest.raises(ModuleRefused) as refused:
        detect(bytes(other))
    assert refused.value.code == "table_unbounded"


def imported(module_name, name="f", kind="(func)"):
    return f'(import "{module_name}" "{name}" {kind})'


def with_locals(*counts):
    """A module with functions that declare so many local variables, in few bytes."""
    whole = module(MEMORY, ENTRY, *["(func (local i32))"] * len(counts))
    code = whole.rindex(b"\x0a")
    bodies = [b"\0\x0b", *[b"\1" + leb(count) + b"\x7f\x0b" for count in counts]]
    content = leb(len(bodies)) + b"".join([leb(len(body)) + body for body in bodies])
    return whole[:code] + b"\x0a" + leb(len(content)) + content


def leb(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + leb(number >> 7)


REFUSED = {
    "no _start": (module(MEMORY, '(func (export "run"))'), "abi_unknown", "exports no function `_start` .*run"),
    "a reactor": (module(MEMORY, '(func (export "_initialize"))'), "abi_unknown", "built as a library"),
    "nothing": (module(), "abi_unknown", "exports no function"),
    "_start is a global": (
        module(MEMORY, '(global (export "_start") i32 (i32.const 0))'),
        "abi_unknown",
        "no function",
    ),
    "_start takes values": (module(MEMORY, '(func (export "_start") (param i32))'), "abi_unknown", "takes or returns"),
    "_start returns": (
        module(MEMORY, '(func (export "_start") (result i32) (i32.const 0))'),
        "abi_unknown",
        "takes or returns",
    ),
    "an Extism plug-in with nothing to call": (
        module(LENGTH, MEMORY, '(func (export "run") (param i32) (result i32) (i32.const 0))'),
        "abi_unknown",
        "plug-in, and exports no function to call.*run",
    ),
    "an Extism plug-in that only begins": (
        module(LENGTH, MEMORY, '(func (export "_initialize"))', '(func (export "asyncify_stop_unwind"))'),
        "abi_unknown",
        "no function to call",
    ),
    "a host function of another host": (
        module(LENGTH, imported("extism:host/user", "hello"), MEMORY, CALLED),
        "imports_unknown",
        "extism:host/user.hello; nodes offer .*extism:host/env and extism:host/user alone",
    ),
    "a kernel function of another type": (
        module(imported("extism:host/env", "alloc", "(func (param i32) (result i32))"), MEMORY, CALLED),
        "imports_mismatch",
        r"alloc as \(i32\) -> \(i32\); it is \(i64\) -> \(i64\)",
    ),
    "a kernel function that is the host's": (
        module(imported("extism:host/env", "input_set", "(func (param i64 i64))"), MEMORY, CALLED),
        "imports_unknown",
        "input_set",
    ),
    "a plug-in with two memories": (module(LENGTH, MEMORY, "(memory 1)", CALLED), "memory_several", "2 memories"),
    "wasi:http": (module(imported("wasi:http/types@0.2.0"), MEMORY, ENTRY), "abi_wasi_http", "component model"),
    "waPC": (module(imported("wapc", "__guest_request"), MEMORY, ENTRY), "abi_wapc", "waPC"),
    "waPC by export": (module(MEMORY, '(func (export "__guest_call"))'), "abi_wapc", "waPC"),
    "proxy-wasm": (module(MEMORY, '(func (export "proxy_on_request_headers"))'), "abi_proxy_wasm", "proxy"),
    "proxy-wasm by import": (module(imported("env", "proxy_log"), MEMORY, ENTRY), "abi_proxy_wasm", "proxy"),
    "http-wasm": (module(imported("http_handler", "get_uri"), MEMORY, ENTRY), "abi_http_wasm", "http-wasm"),
    "preview 0": (module(imported("wasi_unstable", "fd_write"), MEMORY, ENTRY), "abi_wasi_unstable", "preview 1"),
    "unknown module": (module(imported("mine", "own"), MEMORY, ENTRY), "imports_unknown", "imports mine.own; nodes"),
    "unknown function": (module(imported("skerry", "files"), MEMORY, ENTRY), "imports_unknown", "skerry.files"),
    "unlinked symbol": (module(imported("env", "crc32"), MEMORY, ENTRY), "imports_unknown", "env.crc32.*not linked"),
    "many unknown": (
        module(*[imported("a", f"f{i}") for i in range(12)], MEMORY, ENTRY),
        "imports_unknown",
        "a.f0, .*a.f7 and 4 more",
    ),
    "a global": (
        module(imported("skerry", "sql", "(global i32)"), MEMORY, ENTRY),
        "imports_unknown",
        "skerry.sql",
    ),
    "a table": (module(imported("env", "table", "(table 1 funcref)"), MEMORY, ENTRY), "imports_unknown", "env.table"),
    "another signature": (
        module(imported("skerry", "sql", "(func (param i64) (result i32 f64))"), MEMORY, ENTRY),
        "imports_mismatch",
        r"skerry.sql as \(i64\) -> \(i32, f64\); it is \(i32, i32\) -> \(i32\)",
    ),
    "no memory": (module(ENTRY), "memory_missing", "no memory"),
    "an imported memory": (
        module(imported("env", "memory", "(memory 1)"), ENTRY),
        "memory_imported",
        "imports its memory",
    ),
    "two memories": (module(MEMORY, "(memory 1)", ENTRY), "memory_several", "2 memories"),
    "a hidden memory": (module("(memory 1)", ENTRY), "memory_not_exported", "as `memory`"),
    "another name": (module('(memory (export "mem") 1)', ENTRY), "memory_not_exported", "as `memory`"),
    "two names": (
        module('(memory (export "memory") (export "mem") 1)', ENTRY),
        "memory_not_exported",
        "no other name",
    ),
    "no page": (module('(memory (export "memory") 0)', ENTRY), "memory_zero", "no page"),
    "too many pages": (
        module('(memory (export "memory") 16385)', ENTRY),
        "memory_above_limit",
        "16385 pages of 64 KiB; 16384",
    ),
    "64 bits": (module('(memory (export "memory") i64 1)', ENTRY), "memory_64", "64-bit"),
    "shared": (module('(memory (export "memory") 1 2 shared)', ENTRY), "memory_shared", "shared"),
    "a large table": (module("(table 1000001 funcref)", MEMORY, ENTRY), "table_too_large", "1000001 entries; 1000000"),
    "large tables": (
        module("(table 600000 funcref)", "(table 600000 externref)", MEMORY, ENTRY),
        "table_too_large",
        "1200000 entries",
    ),
    "a table that grows": (module("(table 1 funcref)", GROW, MEMORY, ENTRY), "table_unbounded", "--growable-table"),
    "a table that grows far": (module("(table 1 1000001 funcref)", GROW, MEMORY, ENTRY), "table_unbounded", "maximum"),
    "many locals": (with_locals(50_001), "module_too_complex", "50001 local variables in one function; 50000 are"),
    "many locals in all": (with_locals(*[50_000] * 41), "module_too_complex", "2050000 local variables in all"),
    "many parameters": (
        module(f"(type (func (param {'i32 ' * 1001})))", MEMORY, ENTRY),
        "module_too_complex",
        "1001 parameters or results in one",
    ),
    "many results": (
        module(*[f"(type (func (result {'i32 ' * 1000})))"] * 101, MEMORY, ENTRY),
        "module_too_complex",
        "101000 parameters and results in all",
    ),
    "a component": (wat("(component)"), "module_component", "wasm32-wasip1"),
    "JavaScript as a component": (
        wat("(component)") + b"\0\x0f\x0eStarlingMonkey",
        "module_component",
        "JavaScript program as a component .* --lang ts",
    ),
    "Python as a component": (
        wat("(component)") + b"\0\x10\x0fcomponentize-py",
        "module_component",
        "Python program as a component .*don't run Python",
    ),
    "the text format": (b"\n(module)", "module_source", "wat2wasm"),
    "a program's source": (
        b"export default {}",
        "module_source",
        "built first.*TypeScript, JavaScript, C.*don't run Python",
    ),
    "a long source": ("x = '\u00e9\u00e9'\n".encode() * 2000, "module_source", "built first"),
    "bytes": (b"\x7fELF\2\1\1\0", "module_invalid", "don't begin with those of a WebAssembly module"),
    "bytes that aren't UTF-8": (b"\xff\xd8", "module_invalid", "don't begin with those of a WebAssembly module"),
    "garbage collection": (b"\0asm\1\0\0\0\1\2\1\x4e", "module_gc", "Kotlin.*write the function in another"),
    "nothing at all": (b"", "module_invalid", "don't begin"),
    "another version": (b"\0asm\2\0\0\0", "module_invalid", "version is 02 00 00 00"),
    "cut off": (guest("echo")[:100], "module_invalid", "cut off"),
}


def exported(*names):
    return " ".join(f'(func (export "{name}"))' for name in names)


# What each toolchain's modules import and export, beside WASI.
OTHER_HOSTS = {
    "Javy": (imported("javy_quickjs_provider_v3", "invoke"), "built by Javy.*--lang ts"),
    "Javy with a newer plug-in": (imported("javy-default-plugin-v1", "invoke"), "built by Javy.*--lang ts"),
    "Javy's plug-in itself": (exported("initialize-runtime", "compile-src", "invoke"), "built by Javy"),
    "componentize-js": (
        imported("wasi:http/types@0.2.10", "[constructor]fields") + exported("wizer-initialize", "coreabi_sample_i32"),
        "StarlingMonkey.*--lang ts",
    ),
    "Pyodide": (
        imported("env", "emscripten_date_now") + exported("__wasm_call_ctors", "PyObject_GetAttrString"),
        "CPython.*don't run Python: .*AssemblyScript",
    ),
    "wasm-bindgen before its tool": (
        imported("__wbindgen_placeholder__", "__wbindgen_describe"),
        "wasm-bindgen.*--lang rust.*--lang ts",
    ),
    "wasm-bindgen for the web": (imported("wbg", "__wbg_log_3f"), "wasm-bindgen"),
    "wasm-bindgen for bundlers": (imported("./shop_bg.js", "__wbg_log_3f"), "wasm-bindgen"),
    "wasm-bindgen without imports": (exported("add", "__wbindgen_malloc"), "wasm-bindgen"),
    "Go for a browser": (imported("gojs", "runtime.wasmExit"), "Go program for a JavaScript host.*GOOS=wasip1"),
    "Go before 1.21": (imported("go", "runtime.wasmExit"), "GOOS=wasip1"),
    "AssemblyScript": (
        imported("env", "abort", "(func (param i32 i32 i32 i32))"),
        "AssemblyScript.*--use abort=skerry/abort",
    ),
    "a Node.js add-on": (imported("env", "napi_create_function"), "Node.js"),
    "Emscripten": (imported("env", "emscripten_resize_heap") + exported("__wasm_call_ctors"), "Emscripten.*--lang c"),
    "Emscripten's system calls": (imported("env", "__syscall_openat"), "Emscripten"),
    "Emscripten's exceptions": (imported("env", "invoke_vii"), "Emscripten"),
    "Emscripten with short names": (imported("a", "a") + imported("a", "b$") + exported("P", "R"), "Emscripten"),
    "Fastly": (imported("fastly_http_req", "body_downstream_get"), "Fastly.*--lang ts"),
    "Spin": (imported("fermyon:spin/key-value@2.0.0", "open"), "Spin.*--lang ts"),
    "Spin 1": (exported("handle-http-request"), "Spin"),
    "WASIX": (imported("wasix_32v1", "thread_spawn_v2"), "WASIX.*preview 1"),
}


@pytest.mark.parametrize(("fields", "message"), OTHER_HOSTS.values(), ids=OTHER_HOSTS)
def test_a_module_for_another_host_is_told_what_to_do(fields, message):
    with pytest.raises(ModuleRefused, match=message) as refused:
        detect(module(fields, MEMORY))
    assert refused.value.code == "abi_other_host"
    assert str(refused.value)[-1] == "."


@pytest.mark.parametrize(
    "fields",
    [
        # A program is judged by its imports, and one that Javy linked whole is a program.
        exported("initialize-runtime", "PyObject_Call"),
        exported("__wbindgen_malloc", "spin-sdk-version"),
    ],
)
def test_a_program_s_other_exports_do_not_matter(fields):
    assert detect(module(fields, MEMORY, ENTRY)).abi == "wagi"


def test_one_import_that_looks_short_is_not_taken_for_emscripten():
    with pytest.raises(ModuleRefused) as refused:
        detect(module(imported("a", "a"), imported("mine", "own"), MEMORY, exported("P")))
    assert refused.value.code != "abi_other_host"


@pytest.mark.parametrize(("wasm", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_with_the_reason(wasm, code, message):
    with pytest.raises(ModuleRefused, match=message) as refused:
        detect(wasm)
    assert refused.value.code == code
    assert str(refused.value)[-1] in ".?!"


def test_limits_are_the_callers():
    wasm = guest("echo")
    with pytest.raises(ModuleRefused, match=f"{len(wasm)} bytes; {len(wasm) - 1} are allowed") as refused:
        detect(wasm, size_limit=len(wasm) - 1)
    assert refused.value.code == "module_too_large"
    pages = detect(wasm, size_limit=len(wasm)).memory_pages
    assert detect(wasm, pages_limit=pages).memory_pages == pages
    with pytest.raises(ModuleRefused) as refused:
        detect(wasm, pages_limit=pages - 1)
    assert refused.value.code == "memory_above_limit"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (b"\1\4\1\x60\1\x05", "value type 0x5"),
        (b"\1\2\1\x5d", "type form 0x5d"),
        (b"\1\6\xff\xff\xff\xff\xff\x01", "more than 32 bits"),
        (b"\1\5\xff\xff\xff\xff\x7f", "more than 32 bits"),
        (b"\1\4\xff\xff\xff\x01", "4194303 entries"),
        (b"\2\7\1\1a\1b\0\7", "type 7, which does not exist"),
        (b"\2\6\1\1a\1b\x09", "unknown kind 9"),
        (b"\2\3\1\1\xff", "is not UTF-8"),
        (b"\2\3\1\x7fa", "name of 127 bytes is cut off"),
        (b"\5\3\1\x08\1", "limits flag 0x8"),
        (b"\5\1\1", "ends too early"),
        (b"\7\x0a\1\6_start\0\5", "names a function that does not exist"),
        (b"\7\xff", "ends too early"),
    ],
)
def test_malformed_sections(section, message):
    with pytest.raises(ModuleRefused, match=message) as refused:
        detect(b"\0asm\1\0\0\0" + section)
    assert refused.value.code == "module_invalid"


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
@settings(max_examples=examples(100))
def test_damaged_modules_are_read_or_refused(at, damage):
    wasm = bytearray(guest("sql")[:600])
    at %= len(wasm)
    wasm[at : at + len(damage)] = damage
    try:
        detect(bytes(wasm))
    except ModuleRefused:
        return


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_malformed(tail):
    try:
        binary.read(b"\0asm\1\0\0\0" + tail)
    except binary.Malformed:
        return


DIRECT = '(func (export "skerry_alloc") (param i32) (result i32) (i32.const 8))'
HANDLE = '(func (export "skerry_handle") (param i32 i32) (result i64) (i64.const 0))'


def test_a_direct_module():
    assert detect(module(MEMORY, DIRECT, HANDLE)).abi == "direct"
    assert detect(module(MEMORY, DIRECT, HANDLE, ENTRY)).abi == "direct", "a program's _start doesn't count beside it"
    assert detect(guest("direct_echo")).abi == "direct"
    assert detect(module(MEMORY, DIRECT, ENTRY)).abi == "wagi"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (HANDLE, r"skerry_alloc as no function; it must be \(i32\) -> \(i32\)"),
        (DIRECT + HANDLE.replace("i64", "i32"), r"skerry_handle as \(i32, i32\) -> \(i32\)"),
    ],
)
def test_a_direct_module_whose_exports_do_not_fit(fields, message):
    with pytest.raises(ModuleRefused, match=message) as refused:
        detect(module(MEMORY, fields))
    assert refused.value.code == "abi_unknown"
