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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {re.split(r"[^A-Za-z0-9_-]", item)[0].lower().replace("_", "-") for items in lists for item in items}


@pytest.mark.parametrize(
    ("name", "extras"), [("run", ("local", "build")), ("dev", ("local", "build", "dev"))], ids=["run", "dev"]
)
def test_a_lock_has_everything_that_is_asked_for(name, extras):
    missing = wanted(*extras) - locked(name).keys()
    assert not missing, f"run `just lock`: lock/{name}.lock lacks {sorted(missing)}"


def test_what_runs_is_what_is_tested():
    run, dev = locked("run"), locked("dev")
    assert run.items() <= dev.items()
    assert len(run) < len(dev)


def test_a_lock_names_no_place():
    for path in (ROOT / "lock").glob("*.lock"):
        assert "//" not in path.read_text()
    packages = json.loads((ROOT / "lock" / "npm" / "package-lock.json").read_text())["packages"]
    assert len(packages) > 1
    for name, package in packages.items():
        assert "resolved" not in package
        assert bool(name) == ("integrity" in package)
