"""What `just faults` runs of the files that it names, and in which pieces its worker processes get it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support import long_versions

FEW, MANY = "tests/faults/test_kill_anywhere.py", "tests/faults/test_simulation.py"
SHARED = "tests/security/test_generated.py"
UNIT = "tests/unit/control/test_tokens.py"


@given(st.none())
def drawn(_: None) -> None:
    """A property."""


def plain() -> None:
    """No property."""


class Item:
    """As much of a test as the plugin looks at."""

    def __init__(self, file: str, name: str, obj: Callable[..., None] = plain) -> None:
        self.nodeid, self.obj = f"{file}::{name}", obj


def test_of_unit_tests_properties_are_run_and_long_tests_come_first() -> None:
    many, shared = [Item(MANY, f"test[{n}]") for n in range(3)], [Item(SHARED, f"test_{n}") for n in range(4)]
    properties, others = [Item(UNIT, f"test_{n}", drawn) for n in range(2)], [Item(UNIT, "test_other")]
    items: list[Any] = [*many, *others, *properties, *shared, Item(FEW, "test")]
    gone: list[Any] = []
    config: Any = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: gone.extend(items)))
    for _ in long_versions.pytest_collection_modifyitems(config, items):
        # Others begin with what takes long in a run of all.
        items.reverse()
    assert gone == others
    assert [item.nodeid.partition("::")[0] for item in items] == [*[SHARED] * 4, FEW, UNIT, UNIT, *[MANY] * 3]


def test_a_file_whose_tests_share_a_fixture_is_for_one_worker() -> None:
    of = long_versions.Shares.__new__(long_versions.Shares)._split_scope
    assert of(f"{SHARED}::test_a[x::y]") == of(f"{SHARED}::test_b") == SHARED
    assert of(f"{MANY}::test_a[range(0, 25)]") == f"{MANY}::test_a[range(0, 25)]"
