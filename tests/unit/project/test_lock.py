"""The lock files name everything that pyproject.toml asks for, by version and hash, and no place to get it from."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ENTRY = re.compile(r"([a-z0-9.-]+)==([^ ;\\]+)( ; [^\\]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def locked(name: str) -> dict[str, str]:
    """Versions by name; fails on anything in the file that is not a comment or a hashed requirement."""
    text = re.sub(r"^#.*\n", "", (ROOT / "lock" / f"{name}.lock").read_text(), flags=re.MULTILINE)
    assert ENTRY.sub("", text).strip() == ""
    return {entry[1]: entry[2] for entry in ENTRY.finditer(text)}


def wanted(*extras: str) -> set[str]:
    """The packages of pyproject.toml's dependencies and of `extras`, with those of the extras that these name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, waiting = set(project["dependencies"]), list(extras)
    while waiting:
        items = project["optional-dependencies"][waiting.pop()]
        waiting += [item.removeprefix("skerry[").removesuffix("]") for item in items if item.startswith("skerry[")]
        found |= {item for item in items if not item.startswith("skerry[")}
    return {re.split(r"[^A-Za-z0-9_-]", item)[0].lower().replace("_", "-") for item in found}


LOCKS = {
    "edge": ("edge", "build"),
    "control": ("control", "build"),
    "run": ("control", "local", "build"),
    "dev": ("control", "local", "build", "docs", "dev"),
}


@pytest.mark.parametrize(("name", "extras"), LOCKS.items(), ids=LOCKS)
def test_a_lock_has_everything_that_is_asked_for(name, extras):
    missing = wanted(*extras) - locked(name).keys()
    assert not missing, f"run `just lock`: lock/{name}.lock lacks {sorted(missing)}"


def test_what_runs_is_what_is_tested():
    edge, control, run, dev = (locked(name) for name in LOCKS)
    assert edge.items() < control.items() < run.items() < dev.items()
    assert not edge.keys() & {"aioboto3", "asyncpg", "starlette", "uvicorn"}


def test_a_lock_names_no_place():
    for path in (ROOT / "lock").glob("*.lock"):
        assert "//" not in path.read_text()
    packages = json.loads((ROOT / "lock" / "npm" / "package-lock.json").read_text())["packages"]
    assert len(packages) > 1
    for name, package in packages.items():
        assert "resolved" not in package
        assert bool(name) == ("integrity" in package)
