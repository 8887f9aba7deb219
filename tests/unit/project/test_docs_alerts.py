"""Each alert of packaging/alerts has a test in which it fires, and ends."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]


def told(method: str) -> Iterator[str]:
    """The names of alerts that the tests give to a method of `Watched`."""
    for path in (ROOT / "tests" / "console").glob("test_alerts_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
                yield from (ast.literal_eval(name) for name in node.args)


def test_each_alert_is_made_to_fire_and_to_end() -> None:
    rules = (ROOT / "packaging" / "alerts" / "rules.yml").read_text()
    alerts = re.findall(r"^ *- alert: (\w+)$", rules, re.MULTILINE)
    assert len(alerts) > 20
    assert set(told("fires")) == set(told("ends")) == set(alerts)
