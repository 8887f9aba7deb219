"""The tests that flaked on this machine, in the user's cache folder until tests/flaked.toml has them.

Run as a program, it prints them: `just check` does.
"""

import os
from pathlib import Path

from tests.support import flaked


def machine_file() -> Path:
    """Return where this user's entries are."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "skerry" / "flaked.toml"


def read(path: Path) -> list[flaked.Entry]:
    """Return the entries of a file, none where there is no file."""
    return flaked.entries(path.read_text("utf-8")) if path.exists() else []


def add(found: list[flaked.Entry]) -> None:
    """Have the machine's file name those entries."""
    path = machine_file()
    there = read(path)
    new = [one for one in found if one not in there]
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, [*there, *new])


def notice(root: Path) -> list[str]:
    """Return the lines that name what flaked on this machine and isn't in the tree; what is there is forgotten."""
    path = machine_file()
    noted = flaked.noted(read(path), read(root / "tests" / "flaked.toml"))
    if noted.known:
        _write(path, noted.open)
    if not noted.open:
        return []
    lines = [f"FLAKED on {one.seen}: {one.name}" for one in noted.open]
    return [*lines, f"tests/flaked.toml needs what {path} has, each with the cause that you suspect (CONTRIBUTING.md)"]


def _write(path: Path, entries: list[flaked.Entry]) -> None:
    made = path.with_suffix(".made")
    made.write_text(flaked.text(entries), "utf-8")
    made.rename(path)


if __name__ == "__main__":
    for line in notice(Path(__file__).parents[2]):
        print(line)
