"""Guests' SQL without a guest: a libsql file at a release, and calls on it as a worker makes them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from control.protocol.manifest import SqlGrant
from edge_runtime.sql import database
from edge_runtime.sql.call_sql import CallSql, Session, SqlLimits
from edge_runtime.sql.queries import load

GENERATION = 2**61


class Calls:
    """Calls of a worker on one file."""

    def __init__(self, opened: database.LibsqlDatabase) -> None:
        self.database = opened
        self.session = Session(opened)

    def new(self, grant: SqlGrant = "write", limits: SqlLimits | None = None, watch: Any = None) -> CallSql:
        return CallSql(self.session, grant, GENERATION, watch, limits or SqlLimits())

    def one(self, sql: str, *params: Any, grant: SqlGrant = "write") -> dict[str, Any]:
        """The answer of a call of one statement, committed."""
        call = self.new(grant)
        answer = ask(call, sql, *params)
        call.commit()
        return answer

    def schema(self, *statements: str) -> None:
        """Run these as an applier would."""
        self.database.set_query_only(False)
        for statement in statements:
            self.database.rows(statement)
        self.session.forget()


def ask(call: CallSql, sql: str, *params: Any) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(call.execute(orjson.dumps({"sql": sql, "params": list(params)})))
    return answer


@contextlib.contextmanager
def calls(path: Path, synchronous: str = "NORMAL") -> Iterator[Calls]:
    """Calls on the file at `path`, made where it isn't there."""
    with database.connect(path, synchronous) as opened:
        if database.read_release(opened) is None:
            opened.rows(load("write_release"), ("00000000-0000-4000-8000-000000000000", 1, str(GENERATION), "now"))
        yield Calls(opened)
