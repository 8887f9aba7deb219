"""Files of the metadata's schema only add, so that control of the version before serves on it (ADR 54).

What isn't known to be harmless to the version before is refused here. A file that has to do something else says in its
name which file a control must have to serve after it: `0031_drop_x.needs-0029.sql`.
"""

import re
from collections.abc import Iterable
from typing import Any

import pglast
import pytest
from pglast import ast
from pglast.enums import AlterTableType, ConstrType, OnConflictAction

from control.storage import migrations, queries
from control.storage.migrations import Migration
from tests.support import cockroachdb_rules

FIRST = {"schema": 23, "cockroachdb": 6}
"""The first file of each folder that has to only add."""
HARMLESS = {ConstrType.CONSTR_NULL, ConstrType.CONSTR_NOTNULL, ConstrType.CONSTR_DEFAULT, ConstrType.CONSTR_FOREIGN}
"""Constraints that a new column may have."""
CHECK = re.compile(r"_check$|^check_")
"""The names that PostgreSQL and CockroachDB give to the checks of columns."""
ZONE = re.compile(r"ALTER TABLE (IF EXISTS )?\S+ CONFIGURE ZONE USING ", re.IGNORECASE)


class Rules:
    """What the statements of one file may change, and what they have made themselves."""

    def __init__(self, deleted_from: Iterable[str], plain_indexes: Iterable[str]) -> None:
        """`deleted_from`: tables that queries delete rows of. `plain_indexes`: indexes that aren't unique."""
        self._deleted_from = set(deleted_from)
        self._plain_indexes = set(plain_indexes)
        self._tables: set[str] = set()
        self._columns: dict[tuple[str, str], bool] = {}
        """Columns that the file has added to tables of before, and whether the version before leaves them NULL."""

    def fault(self, statement: ast.Node) -> str:
        """Why the version before could fail beside what a statement does; '' where it can't."""
        judge = getattr(self, f"_{type(statement).__name__}", None)
        return f"{type(statement).__name__} isn't known to only add" if judge is None else judge(statement)

    def _CreateStmt(self, node: ast.CreateStmt) -> str:
        self._tables.add(node.relation.relname)
        constraints = [part for part in node.tableElts if isinstance(part, ast.Constraint)]
        constraints += [c for part in node.tableElts if isinstance(part, ast.ColumnDef) for c in part.constraints or ()]
        return next(filter(None, map(self._reference, constraints)), "")

    def _IndexStmt(self, node: ast.IndexStmt) -> str:
        table = node.relation.relname
        if not node.unique or table in self._tables:
            return ""
        if any(self._columns.get((table, key.name)) for key in node.indexParams):
            return ""
        return f"a unique index on {table}: the version before may write what it refuses"

    def _DropStmt(self, node: ast.DropStmt) -> str:
        if node.removeType != pglast.enums.ObjectType.OBJECT_INDEX:
            return "it drops what the version before may use"
        names = {parts[-1].sval for parts in node.objects}
        return f"it drops {names}, which may be unique" if names - self._plain_indexes else ""

    def _AlterTableStmt(self, node: ast.AlterTableStmt) -> str:
        for command in node.cmds:
            if command.subtype == AlterTableType.AT_DropConstraint and CHECK.search(command.name):
                continue  # It refuses less; that the version before reads new values, who writes them must see to.
            if command.subtype != AlterTableType.AT_AddColumn:
                return f"{AlterTableType(command.subtype).name} isn't known to only add"
            fault = self._added(node.relation.relname, command.def_)
            if fault:
                return fault
        return ""

    def _added(self, table: str, column: ast.ColumnDef) -> str:
        kinds = {constraint.contype for constraint in column.constraints or ()}
        if kinds - HARMLESS:
            return f"{column.colname} has a constraint that a row of the version before may break"
        if ConstrType.CONSTR_NOTNULL in kinds and ConstrType.CONSTR_DEFAULT not in kinds:
            return f"{column.colname} is NOT NULL without a default: the version before can't insert into {table}"
        self._columns[table, column.colname] = ConstrType.CONSTR_DEFAULT not in kinds
        return next(filter(None, map(self._reference, column.constraints or ())), "")

    def _reference(self, constraint: ast.Constraint) -> str:
        if constraint.contype != ConstrType.CONSTR_FOREIGN or constraint.fk_del_action in ("c", "n", "d"):
            return ""
        table = constraint.pktable.relname
        if table in self._deleted_from and table not in self._tables:
            return f"a reference to {table} without ON DELETE: the version before couldn't delete from it"
        return ""

    def _InsertStmt(self, node: ast.InsertStmt) -> str:
        if node.relation.relname not in self._tables:
            return f"it adds rows to {node.relation.relname}, which the version before may not know what to do with"
        conflict = node.onConflictClause
        if conflict is None or conflict.action != OnConflictAction.ONCONFLICT_NOTHING:
            return "INSERT without ON CONFLICT DO NOTHING: it can't be run again"
        return ""

    def _UpdateStmt(self, node: ast.UpdateStmt) -> str:
        table = node.relation.relname
        old = [t.name for t in node.targetList if table not in self._tables and (table, t.name) not in self._columns]
        return f"it changes {', '.join(old)} of {table}, which the version before goes by" if old else ""


def faults(statements: Iterable[str], deleted_from: Iterable[str] = (), plain_indexes: Iterable[str] = ()) -> list[str]:
    """What the version before of control may fail on when the statements of a file have been run."""
    rules = Rules(deleted_from, plain_indexes)
    found = []
    for sql in statements:
        if ZONE.match(sql):
            continue
        index = sql.startswith(("CREATE INDEX", "CREATE UNIQUE INDEX"))
        translated = sql.replace("USING HASH", "") if index else cockroachdb_rules.translate(sql)
        assert isinstance(translated, str), translated
        found += [fault for raw in pglast.parse_sql(translated) if (fault := rules.fault(raw.stmt))]
    return found


def parsed(sql: str) -> Any:
    [raw] = pglast.parse_sql(sql)
    return raw.stmt


def tables_deleted_from() -> set[str]:
    paths = sorted((queries.folder() / "queries").glob("*.sql"))
    statements = [parsed(sql) for path in paths for sql in queries.load(path.stem).values()]
    return {statement.relation.relname for statement in statements if isinstance(statement, ast.DeleteStmt)}


def plain_indexes(files: Iterable[Migration]) -> set[str]:
    """The names of all indexes that aren't unique, as the files say."""
    made = re.compile(r"CREATE INDEX IF NOT EXISTS (\w+)")
    return {name for file in files for statement in file.statements for name in made.findall(statement)}


ALL = migrations.migrations(cockroachdb=True)


def has_to_only_add(name: str) -> bool:
    folder, _, file = name.partition("/")
    return int(file[:4]) >= FIRST[folder] and not migrations.needed(name)


@pytest.mark.parametrize("file", [m for m in ALL if has_to_only_add(m.name)], ids=lambda file: file.name)
def test_a_file_only_adds(file: Migration) -> None:
    assert faults(file.statements, tables_deleted_from(), plain_indexes(ALL)) == []


def test_a_file_that_says_what_it_needs_says_it_of_one_that_there_is() -> None:
    numbers = {int(m.name[7:11]) for m in ALL if m.name.startswith("schema/")}
    assert {migrations.needed(m.name) for m in ALL} - {0} <= numbers
    assert [m.name for m in ALL if "needs" in m.name and not migrations.needed(m.name)] == []


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE IF NOT EXISTS a (id INT8 PRIMARY KEY, b TEXT UNIQUE CHECK (b <> ''))"],
        ["CREATE TABLE IF NOT EXISTS a (id INT8)", "CREATE UNIQUE INDEX IF NOT EXISTS a_id ON a (id)"],
        ["CREATE TABLE IF NOT EXISTS a (id INT8)", "INSERT INTO a (id) VALUES (1) ON CONFLICT (id) DO NOTHING"],
        ["CREATE TABLE IF NOT EXISTS a (n UUID REFERENCES nodes (id), g UUID REFERENCES gone (id) ON DELETE CASCADE)"],
        ["ALTER TABLE nodes ADD COLUMN IF NOT EXISTS a TEXT NOT NULL DEFAULT ''", "UPDATE nodes SET a = name"],
        [
            "ALTER TABLE nodes ADD COLUMN IF NOT EXISTS a TEXT",
            "CREATE UNIQUE INDEX IF NOT EXISTS i ON nodes (state, a)",
        ],
        ["CREATE INDEX IF NOT EXISTS i ON nodes (name)", "DROP INDEX IF EXISTS plain"],
        ["CREATE INDEX IF NOT EXISTS i ON nodes (joined_at) USING HASH"],
        ["ALTER TABLE nodes CONFIGURE ZONE USING gc.ttlseconds = 600"],
    ],
    ids=lambda statements: statements[-1][:60],
)
def test_what_only_adds_is_let_through(statements: list[str]) -> None:
    assert faults(statements, {"gone"}, {"plain"}) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE nodes",
        "DROP INDEX IF EXISTS warnings_open",
        "ALTER TABLE nodes DROP COLUMN IF EXISTS labels",
        "ALTER TABLE nodes RENAME COLUMN labels TO tags",
        "ALTER TABLE nodes RENAME TO edges",
        "ALTER TABLE nodes ALTER COLUMN failures TYPE TEXT",
        "ALTER TABLE nodes ALTER COLUMN retry_at SET NOT NULL",
        "ALTER TABLE nodes ALTER COLUMN failures DROP NOT NULL",
        "ALTER TABLE nodes ALTER COLUMN failures DROP DEFAULT",
        "ALTER TABLE nodes ADD CONSTRAINT c CHECK (failures < 10)",
        "ALTER TABLE nodes DROP CONSTRAINT nodes_name_key",
        "ALTER TABLE nodes ADD COLUMN IF NOT EXISTS a TEXT NOT NULL",
        "ALTER TABLE nodes ADD COLUMN IF NOT EXISTS a TEXT UNIQUE",
        "ALTER TABLE nodes ADD COLUMN IF NOT EXISTS a TEXT CHECK (a <> name)",
        "ALTER TABLE nodes ADD COLUMN IF NOT EXISTS a UUID REFERENCES gone (id)",
        "ALTER TABLE nodes ADD COLUMN IF NOT EXISTS a TEXT, DROP COLUMN labels",
        "CREATE TABLE IF NOT EXISTS a (b UUID, FOREIGN KEY (b) REFERENCES gone (id))",
        "CREATE UNIQUE INDEX IF NOT EXISTS i ON nodes (group_id, state)",
        "UPDATE nodes SET state = 'offline'",
        "INSERT INTO nodes (name) VALUES ('a') ON CONFLICT (name) DO NOTHING",
        "DELETE FROM nodes",
        "CREATE VIEW a AS SELECT 1",
        "ALTER TABLE auth_failures ALTER PRIMARY KEY USING COLUMNS (minute, address, reason) USING HASH",
    ],
)
def test_what_the_version_before_may_fail_on_is_found(statement: str) -> None:
    assert faults([statement], {"gone"}, {"plain"})


def test_the_rules_know_what_queries_delete() -> None:
    assert {"syncs", "webhooks", "credentials"} <= tables_deleted_from()
    assert "nodes" not in tables_deleted_from()
