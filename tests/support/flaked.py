"""A test that failed in `.ci/run` and passes when it runs again: when that is tried, what it means, what is noted."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

TIMES: Final = 10
"""How often a test runs again, alone and then beside a busy program."""
DAYS: Final = 7
"""How long an entry of tests/flaked.toml holds."""
MOST: Final = 5
"""How many entries it may have."""
MARKER: Final = "never_retry"
NEVER: Final = ("tests/faults/", "tests/security/", "tests/simulation/", "tests/upgrades/", "tests/acceptance/test_r6_")
"""What begins the names of tests that never run again: their failures mean lost data or a hole, however rare."""
GRAVE: Final = (
    "Traceback (most recent call last)",
    "Fatal Python error",
    "AddressSanitizer",
    "UndefinedBehaviorSanitizer",
    ": runtime error: ",
)
"""In a program's log, or in what an assertion tells of it: a fault of the program, whenever it shows."""


@dataclass(frozen=True)
class Failure:
    """A test that failed, in any of its phases."""

    name: str
    """As pytest takes it: `tests/unit/test_x.py::test_y[z]`."""
    marks: Collection[str] = ()
    crashed: bool = False
    """The process that ran the test ended."""
    grave: str = ""
    """The text of `GRAVE` that a program's log has."""


@dataclass(frozen=True)
class Again:
    """What became of a test that ran again `TIMES` times."""

    how: str
    passed: int
    said: str = ""
    """The end of pytest's output."""


@dataclass(frozen=True)
class Entry:
    """One of tests/flaked.toml."""

    name: str
    seen: date
    ends: date
    cause: str
    """What is suspected; '' until somebody has thought about it."""
    seed: str = ""
    said: str = ""
    """The first line of the error."""


@dataclass(frozen=True)
class Noted:
    """What the machine's file and the tree's have."""

    open: list[Entry] = field(default_factory=list)
    """Those that the tree lacks."""
    known: list[Entry] = field(default_factory=list)


def grave(text: str) -> str:
    """Return what in a program's log tells of a fault; '' for none."""
    return next((words for words in GRAVE if words in text), "")


def refusal(failures: Sequence[Failure], before: bool) -> str:
    """Say why what failed in a run isn't tried again; '' where it is. `before` tells of one that flaked earlier."""
    if len(failures) != 1:
        return f"{len(failures)} tests failed"
    if before:
        return "another test has flaked in this .ci/run"
    [failed] = failures
    if failed.crashed:
        return "its process crashed"
    if failed.name.startswith(NEVER):
        return "tests of its folder never run again"
    if MARKER in failed.marks:
        return f"it is marked {MARKER}"
    if failed.grave:
        return f"the log of a program has '{failed.grave}'"
    return ""


def verdict(runs: Iterable[Again]) -> str:
    """Say why the failure stands after the test ran again; '' where it passed each time, so flaked."""
    short = [f"{run.passed} of {TIMES} runs {run.how}" for run in runs if run.passed != TIMES]
    return "it passed only " + " and ".join(short) if short else ""


def seed(environment: str | None, output: str) -> str:
    """Return the seed of a run: what the test printed, else the environment's, else ''."""
    printed = re.findall(r"\bSKERRY_TEST_SEED=(\d+)", output)
    return printed[-1] if printed else environment or ""


def entry(name: str, seen: date, seed: str, error: str) -> Entry:
    """Return the entry for a test that flaked, but for its suspected cause."""
    said = "".join(sign for sign in error.strip().partition("\n")[0] if sign.isprintable())
    return Entry(name, seen, seen + timedelta(days=DAYS), "", seed, said[:200])


def text(entries: Iterable[Entry]) -> str:
    """Return entries as a TOML file has them."""
    parts = []
    for one in entries:
        fields = {"name": one.name, "seed": one.seed, "said": one.said}
        strings = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items() if value]
        dates = f"seen = {one.seen}\nends = {one.ends}\n"
        parts.append(f"[[flaked]]\n{''.join(strings)}{dates}cause = {json.dumps(one.cause, ensure_ascii=False)}\n")
    return "\n".join(parts)


def entries(text: str) -> list[Entry]:
    """Return the entries of a TOML file; TypeError or a `tomllib` error where one is malformed."""
    found: list[dict[str, Any]] = tomllib.loads(text).get("flaked", [])
    return [Entry(**one) for one in found]


def faults(known: Sequence[Entry], today: date) -> list[str]:
    """Say what is wrong with the tree's entries on a commit of this day."""
    found = [f"{one.name}: its time ended on {one.ends}" for one in known if one.ends < today]
    found += [f"{one.name}: it ends more than {DAYS} days after it was seen" for one in known if _long(one)]
    found += [f"{one.name}: it doesn't say what is suspected" for one in known if not one.cause.strip()]
    times = Counter(one.name for one in known)
    found += [f"{name}: it has flaked {times[name]} times" for name in times if times[name] > 1]
    if len(known) > MOST:
        found.append(f"{len(known)} entries, {MOST} are the most")
    return found


def _long(one: Entry) -> bool:
    return one.ends - one.seen > timedelta(days=DAYS)


def noted(machine: Iterable[Entry], tree: Iterable[Entry]) -> Noted:
    """Part the machine's entries into those that the tree lacks, and the rest."""
    has = {(one.name, one.seen) for one in tree}
    found = Noted()
    for one in machine:
        (found.known if (one.name, one.seen) in has else found.open).append(one)
    return found
