"""What pages say of a node's backup: how it is in a word, what is wrong, and since when it can be brought back."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from control.api.backups import BackupHistory, DetailedBackup, NodeRestore
from control.backups.backup_faults import LEAST_LATE, PROVEN_LATE
from control.backups.drills import UNTRIED
from control.backups.restores import RestoreState
from control.console import shown_backup
from control.console.shown_backup import RESTORE_KINDS, ShownBackup
from control.protocol import wire

NOW = datetime(2026, 12, 2, tzinfo=UTC)
DAY = timedelta(days=1)
LINEAGE = "a" * 32


def history(**more: Any) -> BackupHistory:
    fields: dict[str, Any] = {
        **{"lineage": LINEAGE, "begun_at": NOW - 10 * DAY, "ended_at": None, "reached": 7, "reached_at": NOW},
        **{"told_at": NOW, "pending": 0, "error": "", "at_store": 1000, "proven": 7, "proven_at": NOW - DAY},
        **{"drilled_at": NOW - DAY, "drill_error": "", **more},
    }
    return BackupHistory(**fields)


def shown(*histories: BackupHistory, protocol: int = wire.PROTOCOL, **more: Any) -> ShownBackup:
    """A backup of which all is well."""
    found = list(histories) or [history()]
    fields: dict[str, Any] = {
        **{"node": "oslo", "group": "shops", "interval": 10.0, "retention": 30 * 86_400, "lineage": LINEAGE},
        **{"reached_at": NOW, "lag": 2.0, "told_at": NOW, "pending": 0, "error": "", "at_store": 1000},
        **{"proven_at": NOW - DAY, "drilled_at": NOW - DAY, "drill_error": "", "restore": None},
        **more,
    }
    return ShownBackup("oslo", "shops", protocol, DetailedBackup(**fields, histories=found), None, NOW)


def restore(state: RestoreState, **more: Any) -> NodeRestore:
    fields: dict[str, Any] = {
        **{"id": "1", "node": "oslo", "from_node": None, "position": f"{LINEAGE}/7", "at": NOW, "before_release": None},
        **{"hold": True, "state": state, "code": "", "message": "", "release": 1, "release_group": "shops"},
        **{"kept": "", "kept_position": ""},
        **{"made_by": "ada", "made_at": NOW, "told_at": None, "ended_at": None, **more},
    }
    return NodeRestore(**fields)


def test_all_is_well() -> None:
    assert (shown().verdict, shown().troubles) == (("ok", "good"), [])


def test_a_history_that_has_just_begun_is_not_good_yet() -> None:
    begun = shown(history(begun_at=NOW, reached=0, reached_at=None), history(ended_at=NOW), reached_at=None)
    assert (begun.verdict, begun.troubles, begun.has_data) == (("wait", "nothing yet"), [], True)


def test_no_backup_is_off_and_nothing_is_wrong_with_it() -> None:
    none = ShownBackup("oslo", "shops", wire.PROTOCOL, None, None, NOW)
    for off in (none, shown(history(reached_at=NOW - DAY), interval=0.0, retention=0, error="old")):
        assert (off.verdict, off.is_on, off.troubles) == (("todo", "off"), False, [])
    assert (none.has_data, none.reaches_back) == (False, None)
    assert shown(interval=0.0, retention=0).has_data, "what is at the store can be brought back"


@pytest.mark.parametrize(
    ("backup", "fault", "verdict", "text"),
    [
        (shown(error="the disk failed"), "failing", ("fail", "failing"), "the disk failed"),
        (shown(history(ended_at=NOW)), "missing", ("wait", "nothing yet"), "tells about once a minute"),
        (
            shown(history(ended_at=NOW), protocol=wire.BACKUP_PROTOCOL - 1),
            "missing",
            ("wait", "nothing yet"),
            "upgrade it",
        ),
        (
            shown(history(reached_at=NOW - timedelta(seconds=LEAST_LATE + 1))),
            "late",
            ("warn", "the store is behind"),
            "disk is lost",
        ),
        (
            shown(history(drill_error="3 rows break a foreign key")),
            "drill",
            ("fail", "restore drill failed"),
            "3 rows break a foreign key",
        ),
        (
            shown(history(drill_error=f"{UNTRIED}no room [disk_full]")),
            "drill",
            ("warn", "restore drill failed"),
            "no room [disk_full]",
        ),
        (
            shown(history(proven_at=NOW - PROVEN_LATE - timedelta(seconds=1))),
            "unproven",
            ("warn", "not proven"),
            "skerry data drill oslo",
        ),
        (shown(history(proven_at=None)), "unproven", ("warn", "not proven"), "skerry data drill oslo"),
    ],
)
def test_each_fault_is_told_with_what_to_do(
    backup: ShownBackup, fault: str, verdict: tuple[str, str], text: str
) -> None:
    (trouble,) = backup.troubles
    assert (trouble.fault, backup.verdict) == (fault, verdict)
    assert text in f"{trouble.text} {trouble.cure}"
    assert trouble.title
    assert trouble.cure
    assert UNTRIED not in trouble.text


def test_what_is_at_a_bound_is_no_fault() -> None:
    assert shown(history(reached_at=NOW - timedelta(seconds=LEAST_LATE))).troubles == []
    assert shown(history(proven_at=NOW - PROVEN_LATE)).troubles == []
    # A history that has just begun has time to be proven.
    assert shown(history(proven_at=None, begun_at=NOW - PROVEN_LATE)).troubles == []


def test_an_interval_of_an_hour_is_late_after_three() -> None:
    assert shown(history(reached_at=NOW - timedelta(hours=3)), interval=3600.0).troubles == []
    assert [each.fault for each in shown(history(reached_at=NOW - timedelta(hours=4)), interval=3600.0).troubles] == [
        "late"
    ]


def test_the_worst_is_the_word_and_all_are_told() -> None:
    found = shown(history(drill_error="torn", reached_at=NOW - DAY), error="gone")
    assert [each.fault for each in found.troubles] == ["failing", "late", "drill"]
    assert found.verdict == ("fail", "failing")


def test_the_proof_is_that_of_the_history_that_goes_on() -> None:
    """A disk that was replaced yesterday isn't proven by the one before it."""
    old = history(lineage="b" * 32, ended_at=NOW - 4 * DAY, drill_error="torn")
    new = history(begun_at=NOW - 4 * DAY, proven_at=None)
    assert [each.fault for each in shown(new, old).troubles] == ["unproven"]


def test_a_backup_reaches_back_to_its_oldest_state_that_is_kept() -> None:
    old = history(lineage="b" * 32, begun_at=NOW - 20 * DAY, ended_at=NOW - 10 * DAY)
    assert shown(history(), old).reaches_back == NOW - 20 * DAY
    assert shown(history(), old, retention=7 * 86_400).reaches_back == NOW - 7 * DAY
    # A history of which nothing is at the store has no state.
    assert shown(history(), history(begun_at=NOW - 25 * DAY, reached=0)).reaches_back == NOW - 10 * DAY
    assert not shown(history(reached=0)).has_data


def test_a_first_snapshot_that_does_not_arrive_is_late() -> None:
    begun = {"reached": 0, "reached_at": None, "proven_at": None}
    assert shown(history(begun_at=NOW - timedelta(seconds=60), **begun)).troubles == []
    assert [each.fault for each in shown(history(begun_at=NOW - timedelta(hours=1), **begun)).troubles] == ["late"]


def test_only_an_order_and_a_hold_hold_a_node() -> None:
    for state in get_args(RestoreState):
        one = restore(state)
        backup = ShownBackup("oslo", "shops", wire.PROTOCOL, None, one, NOW)
        assert (backup.held is one) == (state in ("ordered", "held")), state
        assert shown_backup.said(one)
        assert state in RESTORE_KINDS


def test_what_a_node_told_of_its_restore_is_said() -> None:
    assert shown_backup.said(restore("failed", message="no room")) == "no room"
    assert shown_backup.said(restore("done", message="it was cancelled, but late")) == "it was cancelled, but late"
