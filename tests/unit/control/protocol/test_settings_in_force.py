"""Variables that look like settings and are none, and settings as they are shown."""

import dataclasses
from pathlib import Path

import pytest

from control.protocol import settings_in_force


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("SKERRY_PROT", "SKERRY_PORT"),
        ("SKERRY_EDGE_LISTN", "SKERRY_EDGE_LISTEN"),
        ("SKERRY_EGDE_STATE", "SKERRY_EDGE_STATE"),
        ("skerry_hold", "SKERRY_HOLD"),
        ("SKERRY_METADATA_URI", "SKERRY_METADATA_URL"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest_name(name: str, near: str) -> None:
    [line] = settings_in_force.unknown({name: "a secret value", "SKERRY_PORT": "1", "PATH": "/bin"})
    assert f" {name} " in line
    assert f"is {near} meant?" in line
    assert "secret" not in line


def test_what_is_known_or_empty_or_of_a_test_is_not_told() -> None:
    given = {"SKERRY_EDGE_TOKEN": "x", "SKERRY_TEST_ANYTHING": "1", "SKERRY_PROT": "", "OTHER": "x"}
    assert settings_in_force.unknown(given) == []
    [line] = settings_in_force.unknown({"SKERRY_QQQQQQQQQQ": "1"})
    assert "docs/settings.md" in line


def test_settings_are_shown_with_what_each_is_from() -> None:
    @dataclasses.dataclass
    class Own:
        token: str = dataclasses.field(default="", repr=False)
        hosts: tuple[str, ...] = ()
        file: Path | None = None
        limit: float = 5.0

    own = Own("a secret", ("a", "b"), Path("/x"))
    shown = settings_in_force.in_force(
        own, {"SKERRY_EDGE_FILE": "/x"}, prefix="SKERRY_EDGE_", origins={"hosts": "flag"}
    )
    assert {setting.name: (setting.value, setting.origin) for setting in shown} == {
        "SKERRY_EDGE_FILE": ("/x", "environment"),
        "SKERRY_EDGE_HOSTS": ("a b", "flag"),
        "SKERRY_EDGE_LIMIT": ("5", "default"),
        "SKERRY_EDGE_TOKEN": (settings_in_force.HIDDEN, "program"),
    }
