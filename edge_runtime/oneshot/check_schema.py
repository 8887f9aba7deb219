"""`python -m edge_runtime.oneshot.check schema`: can a schema change be applied after all earlier ones, to tables that
have rows?

It reads `{"earlier": [{"number", "sql"}, …], "sql": …, "amends": {"number", "sql"} | null}` on stdin; `amends` is the
revision that `sql` replaces. It prints `{"ok": true, "empty": […], "warnings": […], "losses": […]}`, or `{"ok": false,
"code", "message", "statement"}`. `empty` lists the tables for which no row could be generated; `warnings` says where
the change fails on generated rows in a way that depends on their values, for which tables it was tried without rows,
which views and triggers fail after it, and which indexes and triggers a recreated table lacks; `losses` says which of
the rows that nodes have before the change can be lost.

With `{"earlier": …, "reverse": NUMBER}` it drafts the change that reverses one of the earlier ones, to come after all
of them, and prints `{"ok": true, "reversal": SQL, "kept": […]}`; `kept` lists the statements that can't be reversed.
"""

import os
import signal
from collections.abc import Iterator
from typing import Final, NamedTuple

import orjson
from msgspec import Struct

from edge_runtime.oneshot import change_effects, reversal
from edge_runtime.oneshot.change_effects import Columns, FoundLoss, parts
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.oneshot.sample_rows import Failures, fill, try_views_and_triggers
from edge_runtime.sandbox import fence
from edge_runtime.sql import database, run_change, schema, schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import ColumnRow, load
from edge_runtime.sql.schema_change import ChangeSteps, SchemaChangeRefused
from edge_runtime.sql.tokenizer import name, tokenize, word

SECONDS: Final = 30.0
"""Seconds of wall-clock time for the whole check."""
_SHOWN: Final = 2000
_COLUMNS: Final = load("columns")

_Schema = dict[tuple[str, str], tuple[str, tuple[str, ...]]]
"""By a definition's type and name: the name of its table, and the definition's tokens."""


class _Tried(NamedTuple):
    """The result of a change before it was undone."""

    schema: _Schema
    columns: dict[str, dict[str, str]]
    """The declared type by table and column, in lower case."""
    rows: dict[str, int]
    """The number of rows by table."""
    failures: Failures
    references: dict[str, int]
    """The tables whose foreign keys a node then checks, with the number of their foreign keys."""


class RegisteredChange(Struct):
    number: int
    sql: str


class SchemaCheckRequest(Struct):
    sql: str = ""
    earlier: list[RegisteredChange] = []
    amends: RegisteredChange | None = None
    reverse: int = 0
    """The number of the earlier change to draft a reversal for; 0 to check `sql`."""


def answer(request: SchemaCheckRequest) -> bytes:
    """Return the answer as JSON. A child computes it behind the fence and is killed at a deadline, since nothing else
    stops a libsql query."""
    try:
        return _guarded(request)
    except SchemaChangeRefused as refused:
        return orjson.dumps(_refusal(refused))


def _guarded(request: SchemaCheckRequest) -> bytes:
    """Return the answer of a forked child. Raises: SchemaChangeRefused, when the check takes too long."""
    try:
        found, status = run_forked(lambda: _fenced(request), SECONDS)
    except TimeoutError:
        raise _slow() from None
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        raise _slow()
    if not found:
        raise RuntimeError(f"the child that checked the schema change ended without an answer (status {status})")
    return found


def _slow() -> SchemaChangeRefused:
    return SchemaChangeRefused(
        "schema_too_slow", f"Its check took more than {SECONDS:.0f} s, on tables with three rows at most."
    )


def _fenced(request: SchemaCheckRequest) -> bytes:
    lacking = fence.lacking()
    fence.enclose()
    with database.in_memory() as opened:
        fence.seal("check", opened.lock.fileno())
        return orjson.dumps(_answer(opened, request) | ({"unfenced": lacking} if lacking else {}))


def check(request: SchemaCheckRequest) -> dict[str, object]:
    """Return the answer; opens libsql in this process."""
    with database.in_memory() as opened:
        return _answer(opened, request)


def _answer(opened: LibsqlDatabase, request: SchemaCheckRequest) -> dict[str, object]:
    try:
        if request.reverse:
            return _reversal(opened, request)
        return {"ok": True, **_check(opened, request)}
    except SchemaChangeRefused as refused:
        return _refusal(refused)


def _refusal(refused: SchemaChangeRefused) -> dict[str, object]:
    return {"ok": False, "code": refused.code, "message": str(refused), "statement": refused.statement[:_SHOWN]}


def _check(opened: LibsqlDatabase, request: SchemaCheckRequest) -> dict[str, object]:
    access_rules = AccessRules.read(opened)
    amends = request.amends
    history(opened, access_rules, request)
    before = None
    if amends is not None:
        opened.rows("BEGIN")
        _run_registered(opened, access_rules, amends)
        before = _schema(opened)
        opened.rollback()
    columns = _columns(opened)
    tried = _try(opened, access_rules, request.sql)
    steps = schema_change.steps_of(request.sql)
    if steps is not None:
        _check_undo(opened, access_rules, steps)
    before_it = _schema(opened)
    if before is not None:
        _compare(before, tried.schema)
    held = change_effects.find_stalls(change_effects.at_once(request.sql), columns, tried.references)
    lost = _losses(request.sql, steps, columns, tried.columns)
    gone = sorted(_gone(request.sql, before_it, tried.schema))
    warnings = [{"statement": "", "message": message} for message in gone]
    opened.rows("PRAGMA foreign_keys = ON")
    empty = fill(opened)
    opened.rows("PRAGMA foreign_keys = OFF")
    rows, failed_before = schema.row_counts(opened), _rehearsed(opened)
    named = {name(token) for token in tokenize(request.sql)}
    if untried := sorted(table for table in empty if table.lower() in named):
        message = f"no rows could be generated for {', '.join(untried)}: it is tried without rows there"
        warnings.append({"statement": "", "message": message})
    try:
        tried = _try(opened, access_rules, request.sql, rehearsed=True)
    except SchemaChangeRefused as refused:
        if _fails_on_any_row(refused):
            raise
        warnings.append({"statement": refused.statement[:_SHOWN], "message": f"on some data it fails: {refused}"})
    else:
        left = tried.rows
        warnings += [
            {"statement": statement[:_SHOWN], "message": f"after it, this fails: {error}"}
            for statement, error in tried.failures.items()
            if failed_before.get(statement) != error
        ]
        # An existing trigger may delete rows as well.
        fewer = {table for table in rows.keys() & left.keys() if left[table] < rows[table]}
        lost += [
            FoundLoss("", table, f"on generated rows, {table} has fewer rows after it than before")
            for table in sorted(fewer - {loss.table for loss in lost})
        ]
    told = [{"statement": loss.statement[:_SHOWN], "table": loss.table, "message": loss.message} for loss in lost]
    stalling = [{**stall._asdict(), "statement": stall.statement[:_SHOWN]} for stall in held]
    return {"empty": empty, "warnings": warnings, "losses": told, "stalls": stalling}


def _losses(sql: str, steps: ChangeSteps | None, before: Columns, after: Columns) -> list[FoundLoss]:
    """Return what a change can lose, done or undone."""
    if steps is None:
        return change_effects.find_losses(schema_change.statements(sql), before, after)
    keys = {step.table.lower(): step.key.lower() for step in steps.steps if step.table}
    lost = change_effects.find_losses(schema_change.statements(sql), before, after, keys)
    told = {(loss.statement, loss.table) for loss in lost}
    undone = [*(step.sql for _, step in steps.of("before")), steps.undo]
    return lost + [
        loss._replace(message=f"where it is undone, {loss.message}")
        for loss in change_effects.find_losses(schema_change.split_all(undone), before, before, keys)
        if (loss.statement, loss.table) not in told
    ]


def _gone(sql: str, before: _Schema, after: _Schema) -> Iterator[str]:
    """Yield the indexes and triggers that disappeared with a table that was dropped and recreated under the same name,
    although no statement dropped them."""
    made = [parts(statement.tokens) for statement in schema_change.statements(sql)]
    dropped = {(part.kind, part.table) for part in made if part.action == "drop"}
    for (kind, called), (table, _) in before.items():
        if (
            kind in ("index", "trigger")
            and ("table", table) in after
            and not {(kind, called)} & (after.keys() | dropped)
        ):
            yield f"after it the {kind} {called} of {table} is gone with the table that had it: make it on the new one"


def history(opened: LibsqlDatabase, access_rules: AccessRules, request: SchemaCheckRequest) -> None:
    """Run all changes before the one being checked.

    Raises: SchemaChangeRefused, when one fails.
    """
    opened.rows("BEGIN")
    for change in sorted(request.earlier, key=lambda change: change.number):
        if request.amends is None or change.number < request.amends.number:
            _run_registered(opened, access_rules, change)
    opened.rows("COMMIT")


def _reversal(opened: LibsqlDatabase, request: SchemaCheckRequest) -> dict[str, object]:
    access_rules = AccessRules.read(opened)
    sql, kept = "", list[dict[str, str]]()
    opened.rows("BEGIN")
    for change in sorted(request.earlier, key=lambda change: change.number):
        if change.number == request.reverse:
            sql, kept = reversal.draft(opened, access_rules, change.sql)
        else:
            _run_registered(opened, access_rules, change)
    if sql and (why := reversal.misfit(opened, access_rules, sql)):
        kept.append({"statement": sql, "message": why})
    opened.rollback()
    shown = [{name: text[:_SHOWN] for name, text in item.items()} for item in kept]
    return {"ok": True, "reversal": sql, "kept": shown}


def _run_registered(opened: LibsqlDatabase, access_rules: AccessRules, change: RegisteredChange) -> None:
    try:
        run_change.run(opened, access_rules, change.sql)
    except SchemaChangeRefused as refused:
        raise SchemaChangeRefused(
            "schema_history_broken",
            f"Schema change {change.number}, which was registered before, fails: {refused}",
            refused.statement,
        ) from None


def _rehearsed(opened: LibsqlDatabase) -> Failures:
    """Return which of the current views and triggers fail."""
    opened.rows("BEGIN")
    try:
        return try_views_and_triggers(opened)
    finally:
        opened.rollback()


def _try(opened: LibsqlDatabase, access_rules: AccessRules, sql: str, *, rehearsed: bool = False) -> _Tried:
    """Run the change, undo it, and return its result; with `rehearsed` also which views and triggers then fail.

    Raises: SchemaChangeRefused, when the change fails or does something that it may not.
    """
    opened.rows("BEGIN")
    try:
        own, definitions = schema.own(opened), schema.definitions(opened)
        run_change.run(opened, access_rules, sql)
        if schema.own(opened) != own:
            raise SchemaChangeRefused("schema_closed", "It touches the runtime's own tables.")
        if orphans := schema.orphans(opened):
            raise SchemaChangeRefused("schema_invalid", f"After it, {orphans}")
        names = schema.touched([sql], [*definitions, *schema.definitions(opened)])
        references = schema.references(opened, names)
        led_to = _Tried(_schema(opened), _columns(opened), schema.row_counts(opened), {}, references)
        return led_to._replace(failures=try_views_and_triggers(opened)) if rehearsed else led_to
    finally:
        opened.rollback()


def _columns(opened: LibsqlDatabase) -> dict[str, dict[str, str]]:
    return {
        table.lower(): {column.name.lower(): column.type for column in opened.read(ColumnRow, _COLUMNS, (table,))}
        for table in schema.tables(opened)
    }


def _check_undo(opened: LibsqlDatabase, access_rules: AccessRules, steps: ChangeSteps) -> None:
    """Check that the steps before the flip can be undone. Raises: SchemaChangeRefused, when they can't."""
    opened.rows("BEGIN")
    try:
        before = _schema(opened)
        run_change.run_and_undo(opened, access_rules, steps)
        after = _schema(opened)
    finally:
        opened.rollback()
    different = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if different:
        kind, name = different[0]
        raise SchemaChangeRefused(
            "schema_invalid",
            f"After the steps before the flip and `undo` the schema isn't what it was: look at the {kind} {name}.",
        )


def _schema(opened: LibsqlDatabase) -> _Schema:
    return {
        (row.type, row.name.lower()): (row.tbl_name.lower(), schema.normal(row.sql))
        for row in schema.definitions(opened)
    }


def _compare(before: _Schema, after: _Schema) -> None:
    """Check that an amendment leads to the schema that nodes with the earlier revision already have.

    Raises: SchemaChangeRefused, when it doesn't.
    """
    different = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if different:
        kind, name = different[0]
        how = "lacks" if different[0] not in after else "adds" if different[0] not in before else "defines otherwise"
        raise SchemaChangeRefused(
            "schema_amendment_differs",
            f"The amendment must lead to the same schema as the revision that it amends, and it {how} the {kind} "
            f"{name}{f' (and {len(different) - 1} more)' if len(different) > 1 else ''}. Make a new schema change for "
            "what is to be different.",
        )


def _fails_on_any_row(refused: SchemaChangeRefused) -> bool:
    """Return whether the change fails on every row, whatever its values."""
    tokens = schema_change.split(refused.statement)[0].tokens if refused.statement else []
    return bool(tokens and word(tokens[0]) == "alter") or "NOT NULL" in str(refused)
