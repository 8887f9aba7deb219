"""Which states of a database a text asks for."""

from datetime import UTC, datetime

import pytest

from control.backups.targets import AtTime, AtTransaction, BeforeRelease, Latest, Target, parse
from control.problems import ProblemError
from control.protocol import ltx

LINEAGE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("latest", Latest()),
        ("before:12", BeforeRelease(12)),
        (f"{LINEAGE}/7", AtTransaction(LINEAGE, 7)),
        (f"{LINEAGE}/{ltx.MOST_TRANSACTIONS}", AtTransaction(LINEAGE, ltx.MOST_TRANSACTIONS)),
        ("2026-12-02T10:00:00Z", AtTime(datetime(2026, 12, 2, 10, tzinfo=UTC))),
        ("2026-12-02T12:00:00.25+02:00", AtTime(datetime(2026, 12, 2, 10, 0, 0, 250_000, tzinfo=UTC))),
    ],
)
def test_a_state_is_a_time_a_release_the_latest_or_a_transaction(text: str, target: Target) -> None:
    assert parse(text, "to") == target


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "Latest", "before:", "before:0", "before:-1", "before:1.0", "before:٣", "before:9" + "9" * 30),
        *(f"{LINEAGE}/0", f"{LINEAGE}/", f"{LINEAGE[1:]}/7", f"{LINEAGE.upper()}/7", f"{LINEAGE}/{2**63}", "/7"),
        # Without an offset it would be another time elsewhere; a day alone is no moment.
        *("2026-12-02T10:00:00", "2026-12-02", "2026-12-02 10:00:00Z", "0001-01-01T00:00:00+23:59", "x" * 1000),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse(text, "to", "invalid_body")
    assert (caught.value.code, caught.value.field) == ("invalid_body", "to")
    assert "is none of: a time with its offset" in caught.value.detail
    assert len(caught.value.detail) < 400
