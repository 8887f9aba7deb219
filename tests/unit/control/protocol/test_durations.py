"""Durations of options: one form of them, for all."""

import click
import pytest

from control.protocol.command_line import DurationType, shown_duration
from control.protocol.counts import counted


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90d", 90 * 86400), ("12h", 43200), ("30m", 1800), ("45s", 45), ("500ms", 0.5), ("1.5s", 1.5)],
)
def test_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert DurationType().convert(text, None, None) == seconds
    assert DurationType(of="ms").convert(text, None, None) == seconds * 1000


@pytest.mark.parametrize("text", ["", "d", "-1s", "1 s", "1w", "1e3s", "1d12h", "90", "9999999999s"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DurationType().convert(text, None, None)


def test_its_range_and_whole_numbers() -> None:
    limited = DurationType(60, 3600, whole=True)
    assert limited.convert("1h", None, None) == 3600
    assert isinstance(limited.convert("1h", None, None), int)
    for wrong in ("59s", "61m", "60.5s"):
        with pytest.raises(click.BadParameter):
            limited.convert(wrong, None, None)


def test_a_number_alone_is_taken_where_it_was_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert DurationType(plain=True).convert("90", None, None) == 90
    assert "90s" in capsys.readouterr().err
    assert DurationType(of="ms", plain=True).convert("500", None, None) == 500
    assert "500ms" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (0.1, "100ms"), (60, "1m"), (90, "90s"), (30 * 86400, "30d")])
def test_it_is_shown_as_it_is_given(seconds: float, text: str) -> None:
    assert shown_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "many", "text"), [(0, "", "0 nodes"), (1, "", "1 node"), (2500, "", "2,500 nodes"), (2, "nodi", "2 nodi")]
)
def test_one_is_told_as_one(count: int, many: str, text: str) -> None:
    assert counted(count, "node", many) == text
