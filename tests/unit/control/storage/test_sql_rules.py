"""Every statement of sql/ parses, and has nothing that CockroachDB refuses or that is slow there."""

import re
from collections.abc import Iterator
from typing import Any

import pglast
import pytest
from pglast import ast
from pglast.visitors import Visitor

from control.storage import migrations, queries
from tests.support import cockroachdb_rules

FUNCTIONS = {"now", "current_timestamp", "clock_timestamp", "statement_timestamp", "pg_advisory_lock", "nextval"}
REFUSED_STATEMENTS = (
    ast.ListenStmt,
    ast.NotifyStmt,
    ast.UnlistenStmt,
    ast.MergeStmt,
    ast.CreateDomainStmt,
    ast.CreateEnumStmt,
    ast.CreateSeqStmt,
    ast.CreateFunctionStmt,
    ast.CreateTrigStmt,
    ast.DoStmt,
    ast.LockStmt,
    ast.TruncateStmt,
)
SLOW_ARRAYS = {"uuid", "int8", "int4", "varchar", "timestamptz", "bool"}


class Finder(Visitor):  # type: ignore[misc]
    """Collects what is wrong with a statement."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.modified: list[str] = []

    def visit(self, ancestors: Any, node: Any) -> None:
        if isinstance(node, REFUSED_STATEMENTS):
            self.wrong.append(f"{type(node).__name__} isn't there")
        if isinstance(node, (ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt)):
            self.modified.append(node.relation.relname)

    def visit_A_Expr(self, ancestors: Any, node: Any) -> None:
        kinds = pglast.enums.A_Expr_Kind
        if node.kind in (kinds.AEXPR_OP_ANY, kinds.AEXPR_OP_ALL) and isinstance(node.rexpr, ast.ParamRef):
            self.wrong.append("an array parameter without a cast, which takes the type of what it is compared with")

    def visit_FuncCall(self, ancestors: Any, node: Any) -> None:
        name = node.funcname[-1].sval
        if name == "unnest" and any(isinstance(argument, ast.ParamRef) for argument in node.args):
            self.wrong.append("an array parameter without a cast")
        if name in FUNCTIONS or name.startswith("pg_"):
            self.wrong.append(f"the function {name}: time comes from control's clock, the rest isn't there")

    def visit_SQLValueFunction(self, ancestors: Any, node: Any) -> None:
        self.wrong.append("a time or user of the server's")

    def visit_ColumnRef(self, ancestors: Any, node: Any) -> None:
        if isinstance(node.fields[-1], ast.A_Star):
            self.wrong.append("SELECT *: after a change of the schema it means something else")
        elif node.fields[-1].sval in ("ctid", "xmin", "oid"):
            self.wrong.append(f"the column {node.fields[-1].sval}")

    def visit_TypeCast(self, ancestors: Any, node: Any) -> None:
        name = node.typeName.names[-1].sval
        if isinstance(node.arg, ast.ParamRef) and node.typeName.arrayBounds and name in SLOW_ARRAYS:
            self.wrong.append(f"a parameter of the type {name}[], whose look-up is slow: cast from text[]")

    def visit_ColumnDef(self, ancestors: Any, node: Any) -> None:
        name = node.typeName.names[-1].sval
        if name in ("serial", "bigserial", "smallserial", "serial4", "serial8"):
            self.wrong.append(f"{name}: a sequence")

    def visit_Constraint(self, ancestors: Any, node: Any) -> None:
        kinds = pglast.enums.ConstrType
        refused = (kinds.CONSTR_EXCLUSION, kinds.CONSTR_ATTR_DEFERRABLE, kinds.CONSTR_ATTR_DEFERRED)
        if node.nulls_not_distinct or node.deferrable or node.contype in refused:
            self.wrong.append("NULLS NOT DISTINCT, DEFERRABLE or EXCLUDE")

    def visit_CreateStmt(self, ancestors: Any, node: Any) -> None:
        if node.inhRelations or not node.if_not_exists:
            self.wrong.append("a table that inherits, or CREATE without IF NOT EXISTS")

    def visit_IndexStmt(self, ancestors: Any, node: Any) -> None:
        if not node.if_not_exists or node.nulls_not_distinct or node.accessMethod != "btree":
            self.wrong.append("an index without IF NOT EXISTS, of another kind, or with NULLS NOT DISTINCT")

    def visit_RangeTableSample(self, ancestors: Any, node: Any) -> None:
        self.wrong.append("TABLESAMPLE")


def faults(sql: str) -> list[str]:
    """What is wrong with one statement."""
    found = Finder()
    parsed = pglast.parse_sql(sql)
    if len(parsed) != 1:
        return [f"{len(parsed)} statements in one"]
    found(parsed)
    if len(found.modified) != len(set(found.modified)):
        found.wrong.append("two modifications of one table in one statement")
    return found.wrong


def everything() -> Iterator[tuple[str, str]]:
    """Name and text of each statement."""
    for path in sorted((queries.folder() / "queries").glob("*.sql")):
        for name, sql in queries.load(path.stem).items():
            yield f"{path.stem}.{name}", sql
    for migration in migrations.migrations(cockroachdb=False):
        for index, sql in enumerate(migration.statements):
            yield f"{migration.name}.{index}", sql


def test_each_statement_runs_on_cockroachdb_too() -> None:
    # The places where the database's time is read: control compares its own with it.
    wrong = {
        name: faults(sql.replace("clock_timestamp()", "1") if name in ("fleet.epoch", "database.time") else sql)
        for name, sql in everything()
    }
    assert len(wrong) > 400
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT now()",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT * FROM nodes",
        "SELECT n.* FROM nodes n",
        "SELECT id FROM nodes WHERE id = ANY($1::uuid[])",
        "SELECT id FROM nodes WHERE generation = ANY($1::int8[])",
        "SELECT id FROM nodes WHERE id = ANY($1)",
        "SELECT pg_advisory_lock(1)",
        "SELECT ctid FROM nodes",
        "LISTEN x",
        "TRUNCATE nodes",
        "LOCK TABLE nodes",
        "CREATE TABLE IF NOT EXISTS a (id BIGSERIAL PRIMARY KEY)",
        "CREATE TABLE a (id INT8)",
        "CREATE TYPE a AS ENUM ('b')",
        "CREATE TABLE IF NOT EXISTS a (id INT8 UNIQUE NULLS NOT DISTINCT)",
        "CREATE TABLE IF NOT EXISTS a (id INT8 REFERENCES b (id) DEFERRABLE INITIALLY DEFERRED)",
        "WITH a AS (UPDATE nodes SET name = 'a' RETURNING id) UPDATE nodes SET name = 'b'",
        "MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DELETE",
        "SELECT 1; SELECT 2",
    ],
)
def test_the_rules_find_what_is_refused(sql: str) -> None:
    assert faults(sql)


def test_each_statement_for_cockroachdb_alone_is_one_that_its_proxy_knows() -> None:
    statements = [s for m in migrations.migrations(cockroachdb=True) for s in m.statements]
    assert len(statements) > 100
    for statement in statements:
        translated = cockroachdb_rules.translate(statement)
        assert isinstance(translated, str), (statement, translated)
        assert pglast.parse_sql(translated), statement


def test_statements_of_a_file_are_split_at_each_line_that_ends_one() -> None:
    text = "-- a; comment;\nCREATE TABLE a (\n    b TEXT DEFAULT ';'\n);\n\nINSERT INTO a VALUES (';');\n"
    assert len(migrations.statements(text)) == 2


def test_only_the_files_of_sql_have_sql() -> None:
    verb = re.compile(r"\"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE|ALTER TABLE)\s", re.IGNORECASE)
    control = queries.folder().parent / "control"
    found = {
        f"{path.name}: {match[0]}" for path in control.glob("*.py") for match in verb.finditer(path.read_text("utf-8"))
    }
    assert found == set()


def test_files_of_the_schema_are_numbered_without_gaps_or_doubles() -> None:
    """Two of one number would be applied in the order of the rest of their names, which nobody looks at."""
    numbers = [int(path.name[:4]) for path in sorted((queries.folder() / "schema").glob("*.sql"))]
    assert numbers == list(range(1, len(numbers) + 1))
