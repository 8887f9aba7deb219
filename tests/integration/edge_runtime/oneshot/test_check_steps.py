"""The check of a schema change with steps: as nodes run it, and that it can be undone."""

from typing import Any

import pytest

from edge_runtime.oneshot.check_schema import RegisteredChange, SchemaCheckRequest, check
from tests.integration.edge_runtime.children.test_stepwise import ADDED, ANEW, ITEMS, TOTALS


def checked(sql: str, *earlier: str, amends: str | None = None) -> dict[str, Any]:
    registered = [RegisteredChange(number, text) for number, text in enumerate((ITEMS, *earlier), 1)]
    amended = None
    if amends is not None:
        amended = RegisteredChange(len(registered) + 1, amends)
    return check(SchemaCheckRequest(sql, registered, amended))


@pytest.mark.parametrize("sql", [TOTALS, ANEW, ADDED])
def test_a_change_with_steps_is_accepted(sql: str) -> None:
    answer = checked(sql)
    assert answer["ok"], answer
    assert answer["warnings"] == []


def test_later_changes_find_what_the_steps_lead_to() -> None:
    assert "no such trigger" in checked("DROP TRIGGER items_total_ai", TOTALS)["message"]
    assert checked("SELECT state FROM items", ANEW)["ok"]
    assert "no such table: items_old" in checked("SELECT * FROM items_old", ANEW)["message"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            TOTALS.replace("-- skerry: undo\nDROP TRIGGER items_total_ai;", "-- skerry: undo\n"),
            "the trigger items_total_ai",
        ),
        (TOTALS.replace("; ALTER TABLE items DROP COLUMN total", ""), "the table items"),
        (TOTALS.replace("-- skerry: undo", "-- skerry: undone"), "none of the steps"),
        (TOTALS.replace("amount * 2 WHERE id > :after", "missing * 2 WHERE id > :after"), "no such column: missing"),
        (ADDED.replace("amount + 1000000", "NULL"), "NOT NULL"),
        (ADDED.replace("by id", "by rowids"), "must go by its INTEGER PRIMARY KEY id"),
        (ADDED.replace("amount + 1000000", "load_extension('x')"), "closed"),
    ],
)
def test_what_a_node_would_refuse_is_refused(sql: str, says: str) -> None:
    answer = checked(sql)
    assert not answer["ok"]
    assert says in answer["message"]


def test_an_amendment_leads_to_the_same_schema_with_other_steps() -> None:
    whole = "ALTER TABLE items ADD COLUMN total INTEGER; UPDATE items SET total = amount * 2;"
    whole += "CREATE VIEW totals AS SELECT sum(total) AS total FROM items"
    assert checked(TOTALS, amends=whole)["ok"]
    assert checked(whole, amends=TOTALS)["ok"]
    assert checked(ADDED, amends=TOTALS)["code"] == "schema_amendment_differs"
