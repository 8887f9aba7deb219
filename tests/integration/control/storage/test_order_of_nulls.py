"""No list is ordered by a column that may be NULL: PostgreSQL has NULLs last, CockroachDB first."""

from typing import Any

import asyncpg
import pglast
import pytest
import pytest_asyncio
from pglast import ast
from pglast.enums import JoinType

from control.storage import queries

Columns = dict[str, dict[str, bool]]
"""Whether a column may be NULL, by the alias of its table or subquery and its name."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tables(schema_url: str) -> Columns:
    """All tables of the schema."""
    connection = await asyncpg.connect(schema_url)
    rows = await connection.fetch(
        "SELECT table_name, column_name, is_nullable FROM information_schema.columns WHERE table_schema = 'public'"
    )
    await connection.close()
    found: Columns = {}
    for row in rows:
        found.setdefault(row["table_name"], {})[row["column_name"]] = row["is_nullable"] == "YES"
    return found


def wrong(sql: str, tables: Columns) -> list[str]:
    """The keys of ORDER BY in `sql` that may be NULL, or of which that isn't known."""
    found: list[str] = []

    def statement(node: Any, outer: Columns) -> dict[str, bool]:
        """Look at a SELECT and what is in it; return its columns."""
        scope = dict(outer)
        for source in node.fromClause or ():
            add(source, scope, optional=False)
        columns = {target.name or name_of(target.val): nullable(target.val, scope) for target in node.targetList or ()}
        for key in node.sortClause or ():
            largest = isinstance(key.node, ast.FuncCall) and key.node.funcname[-1].sval in ("min", "max")
            # A group has a row at least.
            of = key.node.args if largest and node.groupClause else [key.node]
            if any(nullable(each, scope | {"": columns}) for each in of):
                found.append(name_of(key.node) or str(key.node))
        for target in node.targetList or ():
            windows(target.val, scope)
        return columns

    def windows(node: Any, scope: Columns) -> None:
        if isinstance(node, ast.FuncCall):
            orders = [*(node.agg_order or ()), *((node.over.orderClause or ()) if node.over is not None else ())]
            found.extend(name_of(key.node) for key in orders if nullable(key.node, scope))

    def add(source: Any, scope: Columns, *, optional: bool) -> None:
        if isinstance(source, ast.JoinExpr):
            left = source.jointype in (JoinType.JOIN_RIGHT, JoinType.JOIN_FULL)
            right = source.jointype in (JoinType.JOIN_LEFT, JoinType.JOIN_FULL)
            add(source.larg, scope, optional=optional or left)
            add(source.rarg, scope, optional=optional or right)
            return
        if isinstance(source, ast.RangeSubselect):
            columns = statement(source.subquery, scope)
        elif isinstance(source, ast.RangeVar):
            columns = scope[source.relname] if source.relname in scope else tables[source.relname]
        else:  # a function such as unnest
            columns = {}
        alias = source.alias.aliasname if source.alias is not None else source.relname
        scope[alias] = {name: True if optional else may for name, may in columns.items()}

    def nullable(node: Any, scope: Columns) -> bool:
        if isinstance(node, ast.TypeCast):
            return nullable(node.arg, scope)
        if isinstance(node, ast.CoalesceExpr):
            return all(nullable(argument, scope) for argument in node.args)
        if isinstance(node, ast.A_Const):
            return bool(node.isnull)
        if isinstance(node, ast.CaseExpr):
            results = [when.result for when in node.args]
            return node.defresult is None or any(nullable(result, scope) for result in (*results, node.defresult))
        if isinstance(node, ast.A_Expr) and node.lexpr is not None and node.name[-1].sval in ("+", "-", "*", "="):
            return nullable(node.lexpr, scope) or nullable(node.rexpr, scope)
        if isinstance(node, ast.FuncCall) and node.funcname[-1].sval == "extract":
            return any(nullable(argument, scope) for argument in node.args)
        if isinstance(node, ast.FuncCall):
            return node.funcname[-1].sval not in ("count", "row_number")
        if isinstance(node, ast.ColumnRef):
            *of, column = (field.sval for field in node.fields)
            candidates = [scope[of[0]]] if of else scope.values()
            return next((columns[column] for columns in candidates if column in columns), True)
        return True

    [parsed] = pglast.parse_sql(sql)
    node = parsed.stmt
    scope: Columns = {}
    for cte in node.withClause.ctes if getattr(node, "withClause", None) else ():
        scope[cte.ctename] = statement(cte.ctequery, scope) if isinstance(cte.ctequery, ast.SelectStmt) else {}
    if isinstance(node, ast.SelectStmt):
        statement(node, scope)
    return found


def name_of(node: Any) -> str:
    if isinstance(node, ast.TypeCast):
        return name_of(node.arg)
    return str(node.fields[-1].sval) if isinstance(node, ast.ColumnRef) else ""


async def test_no_list_is_ordered_by_what_may_be_null(tables: Columns) -> None:
    looked = 0
    for path in sorted((queries.folder() / "queries").glob("*.sql")):
        for name, sql in queries.load(path.stem).items():
            looked += "ORDER BY" in sql
            assert wrong(sql, tables) == [], f"{path.stem}.{name}"
    assert looked > 10


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM nodes ORDER BY removed_at",
        "SELECT n.id FROM nodes n ORDER BY n.name, n.retry_at DESC",
        "SELECT n.id FROM nodes n LEFT JOIN releases r ON r.id = n.group_id ORDER BY r.number",
        "SELECT id, greatest(synced_at, retry_at) AS later FROM nodes ORDER BY later",
        "SELECT t.at FROM (SELECT removed_at AS at FROM nodes) AS t ORDER BY t.at",
        "SELECT row_number() OVER (PARTITION BY state ORDER BY synced_at) FROM nodes",
        "SELECT CASE WHEN name = 'a' THEN 0 END AS place FROM nodes ORDER BY place",
        "SELECT CASE WHEN name = 'a' THEN 0 ELSE extract(epoch FROM synced_at) * 2 END AS at FROM nodes ORDER BY at",
        "SELECT labels ->> 'site' AS site FROM nodes ORDER BY site",
        "SELECT max(joined_at) FROM nodes ORDER BY max(joined_at)",
        "SELECT state FROM nodes GROUP BY state ORDER BY max(synced_at)",
    ],
)
async def test_the_rule_finds_what_may_be_null(tables: Columns, sql: str) -> None:
    assert wrong(sql, tables)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT n.id FROM nodes n ORDER BY n.name, n.id::text",
        "SELECT coalesce(synced_at, joined_at) AS at FROM nodes ORDER BY at",
        "SELECT t.name FROM (SELECT name, removed_at FROM nodes) AS t ORDER BY t.name",
        "SELECT CASE WHEN name = 'a' THEN 0 ELSE extract(epoch FROM joined_at) * 2 END AS at FROM nodes ORDER BY at",
    ],
)
async def test_the_rule_takes_what_is_never_null(tables: Columns, sql: str) -> None:
    assert wrong(sql, tables) == []
