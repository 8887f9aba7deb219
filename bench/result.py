"""The result of every benchmark: one ratio (more is better), its bar, and a JSON file in ``bench/results``."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def path(name: str) -> Path:
    return FOLDER / f"{name}.json"


def write(name: str, ratio: float, bar: float, details: dict[str, Any]) -> None:
    """Save and print the result of the benchmark `name`; it passed when `ratio` is at least `bar`."""
    found = {"name": name, "ratio": round(ratio, 4), "bar": bar, "passed": ratio >= bar, "details": details}
    FOLDER.mkdir(exist_ok=True)
    path(name).write_text(json.dumps(found, indent=2) + "\n")
    print(line(found))


def read(name: str) -> dict[str, Any] | None:
    """Return what the benchmark wrote, or None if it wrote nothing."""
    try:
        found: dict[str, Any] = json.loads(path(name).read_text())
    except FileNotFoundError:
        return None
    return found


def line(found: dict[str, Any]) -> str:
    return f"{found['name']:<12} {found['ratio']:8.3f}  bar {found['bar']}  {'passed' if found['passed'] else 'MISSED'}"
