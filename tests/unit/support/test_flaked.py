"""When a failed test runs again, what its runs mean, and what is noted of it."""

from datetime import date

import pytest

from tests.support import flaked
from tests.support.flaked import Again, Entry, Failure

UNIT = "tests/unit/test_a.py::test_a"
SEEN = date(2026, 3, 1)
ENTRY = Entry(UNIT, SEEN, date(2026, 3, 8), "the clock")


@pytest.mark.parametrize(
    ("failures", "before", "says"),
    [
        ([Failure(UNIT)], False, ""),
        ([Failure(UNIT, {"asyncio": 1, "test_a": 1})], False, ""),
        ([Failure("tests/acceptance/test_r5_monitoring.py::test_a")], False, ""),
        ([Failure("tests/unit/faults/test_a.py::test_a")], False, ""),
        ([], False, "0 tests failed"),
        ([Failure(UNIT), Failure("tests/unit/test_b.py::test_b")], False, "2 tests failed"),
        ([Failure(UNIT)], True, "another test has flaked in this .ci/run"),
        ([Failure("tests/faults/test_a.py::test_a")], False, "tests of its folder never run again"),
        ([Failure("tests/security/test_a.py::test_a")], False, "tests of its folder never run again"),
        ([Failure("tests/simulation/test_a.py::test_a")], False, "tests of its folder never run again"),
        ([Failure("tests/upgrades/test_a.py::test_a")], False, "tests of its folder never run again"),
        ([Failure("tests/acceptance/test_r6_integrity.py::test_a")], False, "tests of its folder never run again"),
        ([Failure(UNIT, ["never_retry"])], False, "it is marked never_retry"),
        ([Failure(UNIT, crashed=True)], False, "its process crashed"),
        ([Failure(UNIT, grave="AddressSanitizer")], False, "the log of a program has 'AddressSanitizer'"),
    ],
)
def test_what_runs_again(failures: list[Failure], before: bool, says: str) -> None:
    assert flaked.refusal(failures, before) == says


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        ("WARNING slow\nTimeoutError", ""),
        ('{"error": "Traceback (most recent call last):\\n  File"}', "Traceback (most recent call last)"),
        ("Fatal Python error: Segmentation fault", "Fatal Python error"),
        ("==3==ERROR: AddressSanitizer: heap-use-after-free", "AddressSanitizer"),
        ("loop.c:3:4: runtime error: signed integer overflow", ": runtime error: "),
    ],
)
def test_what_in_a_log_is_a_fault_of_the_program(text: str, found: str) -> None:
    assert flaked.grave(text) == found


@pytest.mark.parametrize(
    ("passed", "says"),
    [
        ((10, 10), ""),
        ((10,), ""),
        ((9,), "it passed only 9 of 10 runs alone"),
        ((10, 0), "it passed only 0 of 10 runs busy"),
    ],
)
def test_what_its_runs_mean(passed: tuple[int, ...], says: str) -> None:
    assert flaked.verdict(Again(how, times) for how, times in zip(("alone", "busy"), passed, strict=False)) == says


@pytest.mark.parametrize(
    ("environment", "output", "found"),
    [
        (None, "", ""),
        ("7", "", "7"),
        (None, "SKERRY_TEST_KILLS=10 SKERRY_TEST_SEED=42\n", "42"),
        ("7", "SKERRY_TEST_SEED=42", "42"),
    ],
)
def test_the_seed_of_a_run(environment: str | None, output: str, found: str) -> None:
    assert flaked.seed(environment, output) == found


def test_an_entry_is_written_as_it_is_read_and_lacks_its_cause() -> None:
    made = flaked.entry('tests/unit/test_a.py::test_a[é-"q"]', SEEN, "7", 'Error: \x1b[31m"no"\n  more')
    assert made == Entry('tests/unit/test_a.py::test_a[é-"q"]', SEEN, date(2026, 3, 8), "", "7", 'Error: [31m"no"')
    assert flaked.entries(flaked.text([made, ENTRY])) == [made, ENTRY]
    assert flaked.faults([made], SEEN) == [f"{made.name}: it doesn't say what is suspected"]


@pytest.mark.parametrize(
    ("known", "today", "says"),
    [
        ([], SEEN, []),
        ([ENTRY], ENTRY.ends, []),
        ([ENTRY], date(2026, 3, 9), [f"{UNIT}: its time ended on 2026-03-08"]),
        (
            [Entry(UNIT, SEEN, date(2026, 3, 9), "the clock")],
            SEEN,
            [f"{UNIT}: it ends more than 7 days after it was seen"],
        ),
        ([ENTRY, Entry(UNIT, date(2026, 3, 2), date(2026, 3, 9), "again")], SEEN, [f"{UNIT}: it has flaked 2 times"]),
        ([Entry(f"{UNIT}{n}", SEEN, ENTRY.ends, "the clock") for n in range(5)], SEEN, []),
        (
            [Entry(f"{UNIT}{n}", SEEN, ENTRY.ends, "the clock") for n in range(6)],
            SEEN,
            ["6 entries, 5 are the most"],
        ),
    ],
)
def test_what_the_tree_may_have(known: list[Entry], today: date, says: list[str]) -> None:
    assert flaked.faults(known, today) == says


def test_what_the_tree_lacks_is_said_whatever_was_suspected() -> None:
    machine = [Entry(UNIT, SEEN, ENTRY.ends, ""), Entry(UNIT, date(2026, 3, 2), ENTRY.ends, "")]
    noted = flaked.noted(machine, [ENTRY])
    assert (noted.known, noted.open) == (machine[:1], machine[1:])
