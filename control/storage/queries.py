"""Named queries from the files in ``sql/queries``.

A file holds queries, each under a line ``-- name: x`` with a comment above it that says in a sentence what it does.
Parameters are positional (``$1``). No SQL is built from strings anywhere else.
"""

import functools
import re
from pathlib import Path

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)[ \t]*$", re.MULTILINE)


class QueryError(Exception):
    """A file of queries is wrong, or a query was asked for that isn't there."""


class Queries(dict[str, str]):
    """The queries of one file, by name."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> str:
        raise QueryError(f"sql/queries/{self.module}.sql has no query {name!r}; it has: {', '.join(sorted(self))}")


def folder() -> Path:
    """The folder ``sql``: inside the package where it was installed from a wheel, else beside it in the checkout."""
    packaged = Path(__file__).parents[1] / "_sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"


@functools.cache
def load(module: str) -> Queries:
    """The queries of ``sql/queries/<module>.sql``; raises `QueryError` for a file that is missing or wrong."""
    path = folder() / "queries" / f"{module}.sql"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QueryError(f"no file of queries {path}") from None
    return parse(module, text)


def parse(module: str, text: str) -> Queries:
    """Read `text` as a file of queries called `module` in errors; raises `QueryError`."""
    head, *rest = _NAME.split(text)
    if _without_comments_at_end(head):
        raise QueryError(f"sql/queries/{module}.sql: there is SQL above the first '-- name:'")
    queries = Queries(module)
    above = head
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
    """A query's text ends where the comment above the next one begins."""
    lines = text.strip().splitlines()
    while lines and (not lines[-1].strip() or lines[-1].startswith("--")):
        lines.pop()
    return "\n".join(lines)
