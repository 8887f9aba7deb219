"""The JSON Schema of function.toml takes and refuses what control does, field by field."""

import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control.cli import main as cli
from control.cli.project import authoring, project_files
from control.protocol.manifest import Cors, HttpGrant, Manifest, Probe, Route

VALIDATOR = jsonschema_rs.validator_for(project_files.file_schema())
TEXTS = st.one_of(
    st.sampled_from(["", "GET", "get", "read", "wagi", "/", "/orders/{id}", "/a/{rest...}", "*.a.example:80"]),
    st.sampled_from(["http://10.0.0.1:8080", "https://shop.example", "null", "*", "KEY", "1st", "x-header", "GET\n"]),
    st.text("aZ0/{}.*:-_\n ", max_size=12),
)
NUMBERS = st.one_of(
    st.integers(-1, 700), st.sampled_from([16_384, 16_385, 60_000, 60_001, 2**20, 2**20 + 1, 2**26, 2**26 + 1])
)
PLAIN = st.one_of(
    TEXTS, NUMBERS, st.booleans(), st.none(), st.lists(TEXTS, max_size=3), st.dictionaries(TEXTS, TEXTS, max_size=2)
)


def tables(kind: type[msgspec.Struct], **inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Tables with some of the fields of a struct, of which each may have any value, and perhaps one that it hasn't."""
    names = [each.encode_name for each in msgspec.structs.fields(kind)]
    fields = {name: st.one_of(inner[name], PLAIN) if name in inner else PLAIN for name in names}
    return st.lists(st.sampled_from([*names, "other"]), max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: fields.get(name, PLAIN) for name in chosen})
    )


MANIFESTS = tables(Manifest, http=tables(HttpGrant), route=tables(Route), cors=tables(Cors), probe=tables(Probe))


def taken(manifest: Any) -> bool:
    try:
        msgspec.convert(manifest, Manifest)
    except msgspec.ValidationError:
        return False
    return True


@given(MANIFESTS)
@example({"route": {"path": "/a", "methods": ["GET"]}, "sql": "write"})
@example({"config": {"KEY": "x", "1st": "y"}})
@example({"http": {"hosts": ["a.example\n"]}})
@example({"time_limit_ms": True})
def test_it_takes_the_manifests_that_control_takes(manifest: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid({"name": "f", "module": "f.wasm", "manifest": manifest}) == taken(manifest)


KINDS = {"": Manifest, "http": HttpGrant, "route": Route, "cors": Cors, "probe": Probe}
WHOLE = {"": {}, "http": {"hosts": ["a.example"]}, "route": {"path": "/"}, "cors": {"origins": ["*"]}, "probe": {}}
"""Of each table of a manifest, one that is taken."""
ENDS = [0, 10, 100, 599, 16_384, 60_000, 65_536, 86_400, 10**6, 2**20, 2**26]
WORDS = ["", "GET", "get", "a", "read", "wagi", "/", "/{id}", "*", "http://a", "GET\n", "x" * 300, "/" * 1025]
OTHERS = [None, True, {}, [], ["GET"] * 17, ["a"] * 65, {"KEY": "x"}, {"1": "x"}]
VALUES = [*OTHERS, *WORDS, *([word] for word in WORDS), *(end + more for end in ENDS for more in (-1, 0, 1))]


@pytest.mark.parametrize("table", KINDS)
def test_it_has_the_limits_of_each_field(table: str) -> None:
    for field in (each.encode_name for each in msgspec.structs.fields(KINDS[table])):
        for value in VALUES:
            inner = {**WHOLE[table], field: value}
            manifest = {table: inner} if table else inner
            valid = VALIDATOR.is_valid({"name": "f", "module": "f.wasm", "manifest": manifest})
            assert valid == taken(manifest), manifest


@pytest.mark.parametrize(
    "wrong", [{"module": "f.wasm"}, {"name": "No Name", "module": "f"}, {"name": "f", "module": "f", "biuld": "x"}]
)
def test_it_refuses_what_is_no_project(wrong: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(wrong)


@pytest.mark.parametrize("language", authoring.LANGUAGES)
def test_a_new_project_has_it_and_fits_it(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["function", "new", "f", "--lang", language]) == 0
    first, _, rest = (tmp_path / "f" / project_files.FILE).read_text().partition("\n")
    named = first.removeprefix("#:schema ")
    written = (tmp_path / "f" / named).read_bytes()
    assert jsonschema_rs.validator_for(orjson.loads(written)).is_valid(tomllib.loads(rest))
    capsys.readouterr()
    assert cli.run(["function", "schema"]) == 0
    assert capsys.readouterr().out.encode() == written
