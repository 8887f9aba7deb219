"""The declared rows of queries, against the database's own description of each statement.

The database doesn't know whether a column of an answer may be NULL, so that isn't compared.
"""

import dataclasses
import importlib
import pkgutil
import types
import typing
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
import pytest_asyncio

import control
from control.storage import queries
from control.storage.queries import DECLARED, Rows

TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int2": (int,),
    "int4": (int,),
    "int8": (int,),
    "float8": (float,),
    "bytea": (bytes,),
    "text": (str,),
    "timestamptz": (datetime,),
    "uuid": (UUID,),
    "varchar": (str,),
    # asyncpg's codec makes of it what the JSON is.
    "jsonb": (dict, list, object),
}
"""What asyncpg makes of each type of the database."""


def load_all() -> None:
    """Import every module of control, so that all its queries are declared."""
    for module in pkgutil.walk_packages(control.__path__, "control."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def columns(row: type) -> list[tuple[str, Any, bool]]:
    """Each field of a row's class: name, type, and whether it may be left out."""
    if dataclasses.is_dataclass(row):
        hints = typing.get_type_hints(row)
        return [(f.name, hints[f.name], f.default is not dataclasses.MISSING) for f in dataclasses.fields(row)]
    if issubclass(row, msgspec.Struct):
        fields = msgspec.structs.fields(row)
        return [(f.name, f.type, not f.required) for f in fields]
    defaults: dict[str, Any] = row._field_defaults  # type: ignore[attr-defined]
    return [(name, kind, name in defaults) for name, kind in typing.get_type_hints(row).items()]


def plain(kind: Any) -> type:
    """The class of a field's values that aren't NULL."""
    if typing.get_origin(kind) is typing.Annotated:
        return plain(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Literal:
        (kind,) = {type(value) for value in typing.get_args(kind)}
        return plain(kind)
    # `Optional` of what isn't a class, such as a `Literal`, is a `Union`.
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
        return plain(kind)
    origin = typing.get_origin(kind) or kind
    return object if origin is Any else origin


def wrong(declared: list[tuple[str, Any, bool]], described: list[tuple[str, str]]) -> list[str]:
    """How declared fields (name, type, optional) differ from a statement's columns (name, type), as texts."""
    found = [f"{name} isn't answered" for name, _, optional in declared[len(described) :] if not optional]
    if len(described) > len(declared):
        found.append(f"{[name for name, _ in described[len(declared) :]]} aren't declared")
    for (name, kind, _), (column, type_) in zip(declared, described, strict=False):
        if name not in ("", column):
            found.append(f"{name} is declared where {column} is answered")
        elif plain(kind) not in TYPES[type_]:
            found.append(f"{column} is {type_}, and declared as {kind}")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def described(schema_url: str) -> dict[str, list[tuple[str, str]]]:
    """The columns (name, type) of what each query of sql/queries answers, by ``file.name``."""
    connection = await asyncpg.connect(schema_url)
    found = {}
    for path in sorted((queries.folder() / "queries").glob("*.sql")):
        for name, text in queries.load(path.stem).items():
            statement = await connection.prepare(text)
            found[f"{path.stem}.{name}"] = [(a.name, a.type.name) for a in statement.get_attributes()]
    await connection.close()
    return found


async def test_declared_rows_are_what_the_database_answers(described: dict[str, list[tuple[str, str]]]) -> None:
    load_all()
    found = {}
    for query in DECLARED:
        fields = columns(query.row) if isinstance(query, Rows) else [("", query.type, False)]
        if differences := wrong(fields, described[query.name]):
            found[query.name] = differences
    assert found == {}


async def test_every_query_that_answers_rows_is_declared(described: dict[str, list[tuple[str, str]]]) -> None:
    load_all()
    answering = {name for name, attributes in described.items() if attributes}
    assert answering == {query.name for query in DECLARED}


class Example(typing.NamedTuple):
    id: UUID
    name: str
    more: int | None = None


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        ([("id", "uuid"), ("name", "text")], []),
        ([("id", "uuid"), ("name", "text"), ("more", "int8")], []),
        ([("name", "text"), ("id", "uuid")], ["id is declared where name is answered", "name is declared where id"]),
        ([("id", "text"), ("name", "text")], ["id is text, and declared as <class 'uuid.UUID'>"]),
        ([("id", "uuid")], ["name isn't answered"]),
        ([("id", "uuid"), ("name", "text"), ("more", "int8"), ("x", "bool")], ["['x'] aren't declared"]),
    ],
)
def test_differences_are_found(answered: list[tuple[str, str]], expected: list[str]) -> None:
    found = wrong(columns(Example), answered)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))
