"""Thousands of generated modules through check, compile and run: each is refused or ends by itself, or ends the process
that it runs in and nothing else. `SKERRY_TEST_SEED` makes other modules, `SKERRY_TEST_MODULES` more: `just faults` has
twenty times as many, these among them."""

import collections
import os

import msgspec
import pytest

from tests.support import by_wasmtime
from tests.support.generated import KINDS, Generated, generated
from tests.support.mill import End, Milled, mill

COUNT = int(os.environ.get("SKERRY_TEST_MODULES", "250"))
SEED = os.environ.get("SKERRY_TEST_SEED", "skerry")

pytestmark = pytest.mark.timeout(900)

CHECK_CODES = {
    "abi_unknown",
    "imports_mismatch",
    "imports_unknown",
    "memory_above_limit",
    "memory_imported",
    "memory_missing",
    "memory_not_exported",
    "memory_several",
    "memory_shared",
    "memory_zero",
    "memory_64",
    "module_gc",
    "module_invalid",
    "module_source",
    "module_too_complex",
    "table_too_large",
    "table_unbounded",
}
ENDING = ("ending", "tame", "plugin", "direct")
GUEST_CODES = {
    "guest_error",
    "guest_call_invalid",
    "guest_exit",
    "guest_response_invalid",
    "guest_trap",
    "guest_unlinkable",
    "response_too_large",
}
"""All of these are answered with a 5xx."""


@pytest.fixture(scope="module")
def modules() -> list[Generated]:
    return generated(COUNT, SEED)


@pytest.fixture(scope="module")
def milled(modules: list[Generated], tmp_path_factory: pytest.TempPathFactory) -> Milled:
    folder = tmp_path_factory.mktemp("mill")
    corpus = folder / "corpus"
    corpus.write_bytes(msgspec.msgpack.encode(modules))
    (folder / "aot").mkdir(mode=0o700)
    return mill(corpus, folder / "aot")


def test_the_check_refuses_or_accepts_each_and_never_dies(modules: list[Generated], milled: Milled) -> None:
    strange = {
        module.name: fate.checked
        for module, fate in zip(modules, milled.fates, strict=True)
        if fate.checked.how != "ok" and fate.checked.code not in CHECK_CODES
    }
    assert strange == {}
    assert all(fate.checked.text for fate in milled.fates if fate.checked.how == "refused")


def test_what_the_check_accepted_is_compiled(modules: list[Generated], milled: Milled) -> None:
    failed = {
        module.name: fate.compiled
        for module, fate in zip(modules, milled.fates, strict=True)
        if fate.checked.how == "ok" and (fate.compiled is None or fate.compiled.how != "ok")
    }
    assert failed == {}


def test_each_run_ends_in_an_answer_or_in_a_fault_of_its_own(modules: list[Generated], milled: Milled) -> None:
    strange = {
        module.name: fate.run
        for module, fate in zip(modules, milled.fates, strict=True)
        if fate.run is not None and not (fate.run.how in ("ok", "signal", "late") or fate.run.code in GUEST_CODES)
    }
    assert strange == {}


def test_modules_that_end_by_themselves_never_end_a_process(modules: list[Generated], milled: Milled) -> None:
    strange = {
        module.name: fate.run
        for module, fate in zip(modules, milled.fates, strict=True)
        if module.kind in ENDING and fate.run is not None and fate.run.how not in ("ok", "refused")
    }
    assert strange == {}


def test_the_interpreter_and_compiled_code_agree(modules: list[Generated], milled: Milled) -> None:
    """A difference would be a wrong result of one of them."""
    compared = {
        module.name: (fate.run, fate.interpreted)
        for module, fate in zip(modules, milled.fates, strict=True)
        if fate.interpreted is not None
    }
    assert len(compared) > COUNT / 2
    assert {name: ends for name, ends in compared.items() if ends[0] != ends[1]} == {}


def test_what_ended_a_process_recurses_or_loops_without_end(modules: list[Generated], milled: Milled) -> None:
    """wasmtime says so too: no other crash hides among them."""
    ended = [
        (module, fate.run)
        for module, fate in zip(modules, milled.fates, strict=True)
        if fate.run is not None and fate.run.how in ("signal", "late")
    ]
    assert ended, "modules of this kind are a part of what is tested"
    assert {end.code for _, end in ended if end.how == "signal"} == {"SIGSEGV"}
    with by_wasmtime.apart() as pool:
        found = pool.map(by_wasmtime.is_endless, [module.wasm for module, _ in ended])
        assert [module.name for (module, _), endless in zip(ended, found, strict=True) if not endless] == []


def test_most_of_them_are_valid(modules: list[Generated], milled: Milled, capsys: pytest.CaptureFixture[str]) -> None:
    """What is refused at once tests little: the share that is run is printed."""
    of_kind = collections.Counter(module.kind for module in modules)
    valid = collections.Counter(
        module.kind for module, fate in zip(modules, milled.fates, strict=True) if fate.checked.how == "ok"
    )
    ends = collections.Counter(_word(fate.run) for fate in milled.fates if fate.run is not None)
    with capsys.disabled():
        print(f"\n{len(modules)} generated modules, {valid.total() / len(modules):.0%} valid:", end=" ")
        print(", ".join(f"{kind} {valid[kind]} of {of_kind[kind]}" for kind in KINDS))
        print("  ended:", ", ".join(f"{word} {count}" for word, count in ends.most_common()))
        print(f"  seconds: {msgspec.to_builtins(milled.times)}")
    assert valid.total() > len(modules) / 2
    assert valid["ending"] > 0.7 * of_kind["ending"]
    assert all(0 < valid[kind] < of_kind[kind] for kind in ("any", "strange", "mutated"))
    assert {"guest_trap", "guest_response_invalid", "SIGSEGV", "late"} <= set(ends)


def _word(end: End) -> str:
    return end.code if end.how in ("refused", "signal") else end.how
