"""Drafts the schema change that reverses another one: it drops what that one created, restores old names, and recreates
the indexes, views and triggers that it dropped. Dropped or changed rows can't be restored.

What a statement created is read from the schema before and after it, not from its text, so `IF NOT EXISTS` does no
harm.
"""

from typing import Final

from edge_runtime.oneshot.change_effects import StatementParts, assigned, parts
from edge_runtime.sql import run_change, schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import DefinitionRow, load
from edge_runtime.sql.schema_change import SchemaChangeRefused, SchemaStatement
from edge_runtime.sql.tokenizer import quoted

_SCHEMA: Final = load("schema")
_NOTHING: Final = frozenset({"select", "values", "with", "analyze", "reindex"})
"""Verbs of statements that leave nothing to reverse."""

_Definitions = dict[tuple[str, str], DefinitionRow]
"""By type and name, in lower case."""


class Reversal:
    """Runs a schema change statement by statement, and collects what reverses it."""

    def __init__(self, opened: LibsqlDatabase, access_rules: AccessRules) -> None:
        self._opened = opened
        self._access_rules = access_rules
        self._undo: list[list[str]] = []
        """For each statement, in order: the statements that reverse it."""
        self._new: set[str] = set()
        """Tables that the change has created so far: changes to their rows disappear with them."""
        self._columns: set[tuple[str, str]] = set()
        """Columns that the change has added so far, with their tables."""
        self.kept: list[dict[str, str]] = []
        """Statements that can't be reversed, each with the reason."""

    @property
    def sql(self) -> str:
        """The change that reverses what can be reversed; empty if nothing can."""
        return "".join(f"{statement};\n" for statements in reversed(self._undo) for statement in statements)

    def run(self, sql: str) -> None:
        """Run the change's statements in the open transaction.

        Raises: SchemaChangeRefused, when one fails.
        """
        for statement in schema_change.split(sql):
            before = self._definitions()
            run_change.run_statements(self._opened, self._access_rules, statement.sql)
            found = parts(statement.tokens)
            why = self._reverse(statement, found, before, self._definitions())
            if why:
                self.kept.append({"statement": statement.sql, "message": why})

    def _definitions(self) -> _Definitions:
        return {(row.type, row.name.lower()): row for row in self._opened.read(DefinitionRow, _SCHEMA)}

    def _reverse(
        self, statement: SchemaStatement, found: StatementParts, before: _Definitions, after: _Definitions
    ) -> str:
        """Collect what reverses a statement, or return why it can't be reversed."""
        table = found.table
        match found.action:
            case "create":
                made = after.get((found.kind, table)) if (found.kind, table) not in before else None
                if made is not None:
                    self._undo.append([f"DROP {made.type.upper()} {quoted(made.name)}"])
                    if made.type == "table":
                        self._new.add(table)
            case "drop":
                dropped = before.get((found.kind, table))
                if found.kind != "table" and dropped is not None and dropped.sql:
                    self._undo.append([dropped.sql])
                elif dropped is not None:
                    self._new.discard(table)
                    return f"the rows of {dropped.name} are gone on every node that has applied it"
            case "add column":
                self._columns.add((table, found.column))
                self._undo.append([f"ALTER TABLE {quoted(table)} DROP COLUMN {quoted(found.column)}"])
            case "drop column":
                return f"the values of the column {found.column} are gone on every node that has applied it"
            case "rename table":
                self._follow(table, found.renamed)
                self._undo.append([f"ALTER TABLE {quoted(found.renamed)} RENAME TO {quoted(table)}"])
            case "rename column":
                back = f"RENAME COLUMN {quoted(found.renamed)} TO {quoted(found.column)}"
                self._undo.append([f"ALTER TABLE {quoted(table)} {back}"])
            case "insert" | "update" | "delete":
                if table not in self._new and not self._fills_new_columns(statement, found):
                    return f"it changes rows of {table}, and what they were isn't known here"
            case _:
                if statement.tokens[0].text.lower() not in _NOTHING:
                    return "it isn't known how to reverse it"
        return ""

    def _follow(self, table: str, renamed: str) -> None:
        if table in self._new:
            self._new.add(renamed)
        self._new.discard(table)
        self._columns |= {(renamed, column) for name, column in self._columns if name == table}

    def _fills_new_columns(self, statement: SchemaStatement, found: StatementParts) -> bool:
        """Return whether an UPDATE sets only columns that the change has added: their values disappear with them."""
        if found.action != "update" or found.replaces:
            return False
        set_columns = assigned(statement.tokens, found.after)
        return bool(set_columns) and all((found.table, column) in self._columns for column in set_columns)


def draft(opened: LibsqlDatabase, access_rules: AccessRules, sql: str) -> tuple[str, list[dict[str, str]]]:
    """Run a change in the open transaction; return the SQL that reverses it, and what that can't reverse.

    Raises: SchemaChangeRefused, when the change fails.
    """
    if schema_change.steps_of(sql) is not None:
        run_change.run(opened, access_rules, sql)
        text = "A change with steps is reversed by one that is written for that, with steps of its own."
        return "", [{"statement": "", "message": text}]
    reversal = Reversal(opened, access_rules)
    reversal.run(sql)
    return reversal.sql, reversal.kept


def misfit(opened: LibsqlDatabase, access_rules: AccessRules, sql: str) -> str:
    """Run a draft in the open transaction; return why it can't be applied, or ''."""
    try:
        run_change.run_statements(opened, access_rules, sql)
    except SchemaChangeRefused as refused:
        return f"after all changes that are registered it fails: {refused}"
    return ""
