"""Runs a schema change in one transaction, whatever steps it has, as the check of a change does."""

import contextlib
from collections.abc import Iterator, Set

from edge_runtime.sql import batches, change_steps, schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.change_steps import ChangeSteps, Stage, StepsInvalid
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.schema_change import SchemaChangeRefused, SchemaStatement
from edge_runtime.sql.statement_parts import parts
from edge_runtime.sql.tokenizer import tokenize, word


def steps_of(sql: str) -> ChangeSteps | None:
    """Return the steps of a change, None where it has none. Raises: SchemaChangeRefused, when they can't be."""
    try:
        return change_steps.parse(sql)
    except StepsInvalid as invalid:
        raise SchemaChangeRefused("schema_invalid", str(invalid)) from None


def run(opened: LibsqlDatabase, access_rules: AccessRules, sql: str) -> None:
    """Run a whole change in the transaction that is open. Raises: SchemaChangeRefused, when a statement fails."""
    steps = steps_of(sql)
    if steps is None:
        schema_change.run(opened, access_rules, sql)
        return
    _run(opened, access_rules, steps, "before")
    with renaming_alone(opened):
        _run_text(opened, access_rules, steps.flip)
    _run(opened, access_rules, steps, "after")


def statements(sql: str) -> list[SchemaStatement]:
    """Return the statements of a change in the order in which they run, but those that undo it.

    Raises: SchemaChangeRefused, when one is incomplete.
    """
    steps = steps_of(sql)
    if steps is None:
        return schema_change.split(sql)
    texts = [*(step.sql for _, step in steps.of("before")), steps.flip, *(step.sql for _, step in steps.of("after"))]
    return [statement for text in texts if tokenize(text) for statement in schema_change.split(text)]


def undone(steps: ChangeSteps) -> list[SchemaStatement]:
    """Return the statements of the steps before the flip, with those that undo them.

    Raises: SchemaChangeRefused, when one is incomplete.
    """
    texts = [*(step.sql for _, step in steps.of("before")), steps.undo]
    return [statement for text in texts if tokenize(text) for statement in schema_change.split(text)]


def at_once(sql: str) -> list[SchemaStatement]:
    """Return the statements of a change that aren't in batches, but those that undo it: each runs in one piece. The
    DROP of a table that batches have emptied is left out.

    Raises: SchemaChangeRefused, when one is incomplete.
    """
    steps = steps_of(sql)
    if steps is None:
        return schema_change.split(sql)
    single = [step.sql for step in steps.steps if not step.table and step.stage == "before"]
    later = [step.sql for step in steps.steps if not step.table and step.stage == "after"]
    texts = [*single, steps.flip, *later]
    found = [statement for text in texts if tokenize(text) for statement in schema_change.split(text)]
    emptied = {step.table.lower() for step in steps.steps if step.table and word(tokenize(step.sql)[0]) == "delete"}
    return [statement for statement in found if not _drops(statement, emptied)]


def _drops(statement: SchemaStatement, tables: Set[str]) -> bool:
    part = parts(statement.tokens)
    return part.action == "drop" and part.kind == "table" and part.table in tables


def run_and_undo(opened: LibsqlDatabase, access_rules: AccessRules, steps: ChangeSteps) -> None:
    """Run the steps before the flip, and what undoes them. Raises: SchemaChangeRefused, when a statement fails."""
    _run(opened, access_rules, steps, "before")
    _run_text(opened, access_rules, steps.undo)


@contextlib.contextmanager
def renaming_alone(opened: LibsqlDatabase) -> Iterator[None]:
    """Have a table that takes another one's name leave what refers to that name as it is, for the block: a change with
    steps exchanges tables so."""
    opened.rows("PRAGMA legacy_alter_table = ON")
    try:
        yield
    finally:
        opened.rows("PRAGMA legacy_alter_table = OFF")


def _run(opened: LibsqlDatabase, access_rules: AccessRules, steps: ChangeSteps, stage: Stage) -> None:
    for _, step in steps.of(stage):
        if step.table:
            batches.whole(opened, access_rules, step)
        else:
            schema_change.run(opened, access_rules, step.sql)


def _run_text(opened: LibsqlDatabase, access_rules: AccessRules, sql: str) -> None:
    if tokenize(sql):
        schema_change.run(opened, access_rules, sql)
