"""Named queries from the files in ``sql/queries``, each declared with the type of its rows.

A file holds queries, each under a line ``-- name: x`` with a comment above it that says in a sentence what it does.
Parameters are positional (``$1``). No SQL is built from strings anywhere else.

aiosql isn't used: it turns each query into a function whose arguments and rows are `Any`, calls asyncpg's `fetchrow`
for one row, which CockroachDB can't handle (`control.storage.connection`), and doesn't notice missing comments. The
loader below has 40 lines.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

R = TypeVar("R", covariant=True)
T = TypeVar("T")

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)[ \t]*$", re.MULTILINE)


class QueryError(Exception):
    """A file of queries is invalid, or a requested query doesn't exist."""


@dataclass(frozen=True, eq=False)
class Rows(Generic[R]):
    """A query and the class of its rows, which takes the columns' values in order."""

    name: str
    """The file and the query: ``syncs.open_syncs``."""
    text: str
    row: type[R]


@dataclass(frozen=True, eq=False)
class Value(Generic[R]):
    """A query of one column, and the type of its values."""

    name: str
    text: str
    type: type[Any]
    """The type of the values that aren't NULL."""


DECLARED: list[Rows[Any] | Value[Any]] = []
"""Every declared query; a test compares each with the database's description of the statement."""


class Queries(dict[str, str]):
    """The queries of one file, by name."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> str:
        raise QueryError(f"sql/queries/{self.module}.sql has no query {name!r}; it has: {', '.join(sorted(self))}")

    def rows(self, name: str, row: type[T]) -> Rows[T]:
        """Declare the class of a query's rows."""
        DECLARED.append(query := Rows(f"{self.module}.{name}", self[name], row))
        return query

    def value(self, name: str, type: type[T]) -> Value[T]:
        """Declare the type of a query's only column, which is never NULL; `fetchval` always finds a row."""
        DECLARED.append(query := Value[T](f"{self.module}.{name}", self[name], type))
        return query

    def optional(self, name: str, type: type[T]) -> Value[T | None]:
        """Declare the type of a query's only column, whose row may be missing or value NULL."""
        DECLARED.append(query := Value[T | None](f"{self.module}.{name}", self[name], type))
        return query


def folder() -> Path:
    """Return the folder ``sql``: inside the package if installed from a wheel, else beside it in the checkout."""
    packaged = Path(__file__).parents[1] / "_sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"


@functools.cache
def load(module: str) -> Queries:
    """Return the queries of ``sql/queries/<module>.sql``. Raises: QueryError, when the file is missing or invalid."""
    path = folder() / "queries" / f"{module}.sql"
    if not path.is_file():
        raise QueryError(f"no file of queries {path}")
    return parse(module, path.read_text(encoding="utf-8"))


def parse(module: str, text: str) -> Queries:
    """Parse `text` as the query file `module`. Raises: QueryError, when it is invalid."""
    above, *rest = _NAME.split(text)
    if _without_comments_at_end(above):
        raise QueryError(f"sql/queries/{module}.sql: there is SQL above the first '-- name:'")
    queries = Queries(module)
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        if not above.rstrip("\n").rpartition("\n")[2].startswith("--"):
            raise QueryError(f"sql/queries/{module}.sql: no comment above {name!r} says what it does")
        if name in queries:
            raise QueryError(f"sql/queries/{module}.sql: the name {name!r} is used twice")
        statement = _without_comments_at_end(body).removesuffix(";").rstrip()
        if not statement:
            raise QueryError(f"sql/queries/{module}.sql: the query {name!r} is empty")
        queries[name] = statement
        above = body
    return queries


def _without_comments_at_end(text: str) -> str:
    """Return `text` up to the comment above the next query."""
    lines = text.strip().splitlines()
    while lines and (not lines[-1].strip() or lines[-1].startswith("--")):
        lines.pop()
    return "\n".join(lines)
