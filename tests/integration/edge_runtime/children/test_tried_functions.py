"""What an applier has loaded on trial is what it probes, as far as that is the same and there is room."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_runtime.children import probe_call, release_transaction
from edge_runtime.children.probe_call import TriedFunctions
from edge_runtime.errors import SyncFailed
from edge_runtime.guests import guest as guests
from edge_runtime.ipc import frames
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.sql import database
from edge_runtime.sql.database import LibsqlDatabase
from tests.guests.build import guest
from tests.integration.edge_runtime.children.test_applier_process import Applier
from tests.support.plans import local, plan


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[LibsqlDatabase]:
    with database.connect(tmp_path / "skerry.db", foreign_keys=False) as made:
        yield made


@pytest.fixture(scope="module")
def aot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aot")


NEED = 1000
"""Bytes that each function takes here: what a process frees at any time of what others have left isn't counted."""


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that were loaded."""
    made: list[str] = []
    monkeypatch.setattr(probe_call, "allocated", lambda: NEED * len(made))
    load = guests.LoadedFunction.load

    def noted(function: LocalFunction, secrets: dict[str, str]) -> guests.LoadedFunction:
        made.append(function.name)
        return load(function, secrets)

    monkeypatch.setattr(guests.LoadedFunction, "load", noted)
    return made


def probed(aot: Path, name: str = "f", probe: bool = True) -> LocalFunction:
    """A function, with a probe that it passes where it shall have one."""
    manifest = {"probe": {"path": "/"}} if probe else {}
    return local(name, guest("env"), aot, **manifest)


def apply(opened: LibsqlDatabase, functions: list[LocalFunction], tried: TriedFunctions, secret: str = "one") -> None:
    secrets = {function.name: {"KEY": secret} for function in functions}
    release_transaction.prepare(opened, plan(1, [], functions), functions, secrets, tried=tried)


def test_a_function_is_loaded_once_for_its_trial_and_its_probe(opened, aot, loads):
    function, tried, needs = probed(aot), TriedFunctions(), []
    tried.load(function, {"KEY": "one"}, needs.append)
    assert needs == [NEED]
    apply(opened, [function], tried)
    assert loads == ["f"]
    # Once more, as after a COMMIT that was given up.
    opened.rollback()
    apply(opened, [function], tried)
    assert loads == ["f"]


def test_other_secrets_and_other_code_are_loaded_again(opened, aot, loads):
    function, tried = probed(aot), TriedFunctions()
    tried.load(function, {"KEY": "one"}, lambda _: None)
    apply(opened, [function], tried, "two")
    assert loads == ["f", "f"]
    opened.rollback()
    other = msgspec.structs.replace(function, version=2)
    apply(opened, [other], tried)
    assert loads == ["f", "f", "f"]


def test_those_without_a_probe_or_without_room_are_not_kept(opened, aot, loads, monkeypatch):
    plain, small, large = (probed(aot, name, name != "plain") for name in ("plain", "small", "large"))
    monkeypatch.setattr(probe_call, "KEPT_BYTES", NEED + NEED // 2)
    tried = TriedFunctions()
    for function in (plain, small, large):
        tried.load(function, {"KEY": "one"}, lambda _: None)
    assert tried.kept(plain, {"KEY": "one"}) is None
    assert tried.kept(small, {"KEY": "one"}) is not None
    assert tried.kept(large, {"KEY": "one"}) is None
    apply(opened, [plain, small, large], tried)
    assert loads == ["plain", "small", "large", "large"]


def test_what_cannot_be_loaded_is_said_and_the_applier_goes_on(tmp_path, aot):
    (tmp_path / "db").mkdir()
    good = probed(aot)
    bad = msgspec.structs.replace(good, name="bad", aot="", wasm=str(tmp_path / "missing.wasm"))
    child = Applier(tmp_path)
    first = child.ask(frames.TRY, frames.Try([good, bad, good]))
    assert first.kind == frames.TRIED
    assert msgspec.json.decode(first.body, type=frames.Tried).bytes > 0
    failed = child.reader.next()
    assert failed.kind == frames.FAILED
    failure = msgspec.json.decode(failed.body, type=frames.ChildFailure)
    assert failure.code == "function_unloadable"
    assert failure.message.startswith("The function bad, version 1, can't be loaded: ")
    # Nothing is told of those that come after it.
    assert child.ask(frames.ABORT).kind == frames.ABORTED
    assert child.end() == 0


def test_a_trial_that_fails_is_an_error_of_the_function(aot, tmp_path):
    bad = msgspec.structs.replace(probed(aot), aot="", wasm=str(tmp_path / "missing.wasm"))
    with pytest.raises(SyncFailed, match="f, version 1, can't be loaded") as failed:
        TriedFunctions().load(bad, {}, lambda _: None)
    assert failed.value.code == "function_unloadable"
