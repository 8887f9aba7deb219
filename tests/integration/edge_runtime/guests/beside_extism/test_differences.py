"""What is different from Extism's own host, by the names in docs/reference/other-hosts.md: each is shown."""

from concurrent.futures import Executor
from pathlib import Path

import pytest

from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.guest import CallLimits, LoadedFunction
from edge_runtime.oneshot.check import check_module
from tests.guests.build import guest, wat
from tests.support import by_extism
from tests.support.beside_extism import IMPORTS, by_reference, function, module, numbers, requested, requesting
from tests.support.by_extism import Call, End, by_node
from tests.support.different import Differences
from tests.support.functions import loading
from tests.support.kernel_scripts import Op, Place, Step, encoded

page = Differences("Extism's own host")


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
