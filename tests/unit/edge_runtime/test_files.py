"""What the agent keeps on disk: the identity, and the report that waits."""

import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from control.protocol import wire
from edge_runtime import files
from edge_runtime.sync import identity
from edge_runtime.sync.identity import Identity, NotJoined
from edge_runtime.sync.sync_outcomes import BegunSync, Outbox, Waiting

WHO = Identity("id", "edge-1", "default", "https://control:8443", "skn_old", datetime(2026, 1, 1, tzinfo=UTC))


def test_an_identity_is_read_back_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    identity.write(tmp_path, WHO)
    assert identity.read(tmp_path) == WHO
    assert stat.S_IMODE(identity.path(tmp_path).stat().st_mode) == 0o600


def test_a_wider_file_in_its_place_does_not_make_it_readable(tmp_path: Path) -> None:
    identity.path(tmp_path).write_text("{}")
    identity.path(tmp_path).chmod(0o644)
    identity.write(tmp_path, WHO)
    assert stat.S_IMODE(identity.path(tmp_path).stat().st_mode) == 0o600


def test_a_state_directory_without_an_identity_says_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(NotJoined, match="skerry-edge join"):
        identity.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"node_id": 1}'])
def test_a_damaged_identity_is_named_and_not_taken_for_none(tmp_path: Path, content: bytes) -> None:
    identity.path(tmp_path).write_bytes(content)
    with pytest.raises(NotJoined, match=r"identity\.json can't be read"):
        identity.read(tmp_path)


def test_a_new_credential_takes_the_old_ones_place_only_when_it_was_used() -> None:
    rotated = WHO.rotated("skn_new")
    assert (rotated.credential, rotated.next_credential) == ("skn_old", "skn_new")
    promoted = rotated.promoted(WHO.credential_since + timedelta(days=30))
    assert (promoted.credential, promoted.next_credential) == ("skn_new", "")
    assert promoted.credential_since > WHO.credential_since
    assert rotated.fallen_back() == WHO


def test_a_report_waits_until_it_is_cleared_and_survives_a_restart(tmp_path: Path) -> None:
    update = wire.SyncUpdate(
        status="failed",
        error=wire.SyncError("disk_full", "no space"),
        retry_at=datetime(2026, 1, 1, tzinfo=UTC),
        inventory=wire.Inventory(3, database_id="x"),
    )
    assert Outbox(tmp_path).waiting() is None
    Outbox(tmp_path).keep("sync-1", update)
    assert Outbox(tmp_path).waiting() == Waiting("sync-1", update)
    Outbox(tmp_path).keep("sync-2", update)
    assert Outbox(tmp_path).waiting() == Waiting("sync-2", update)
    Outbox(tmp_path).clear("sync-2")
    Outbox(tmp_path).clear("sync-2")
    assert Outbox(tmp_path).waiting() is None


def test_a_sync_that_control_gives_again_is_reported_again(tmp_path: Path) -> None:
    """As control does whose metadata were restored from a backup of the time when the sync ran."""
    outbox = Outbox(tmp_path)
    for status in ("succeeded", "failed"):
        update = wire.SyncUpdate(status=status)
        outbox.keep("sync-1", update)
        assert outbox.waiting() == Waiting("sync-1", update)
        outbox.clear("sync-1")
        assert outbox.waiting() is None


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b'{"sync_id":', id="cut"),
        pytest.param(b'{"sync_id":"\xff"}', id="no UTF-8"),
        pytest.param(b'{"a":' + b"[" * 100_000, id="deep"),
    ],
)
def test_what_is_damaged_in_the_outbox_is_given_up(tmp_path: Path, damaged: bytes) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep("sync-1", wire.SyncUpdate(status="running"))
    (tmp_path / "outbox" / "report.json").write_bytes(damaged)
    (tmp_path / "outbox" / "attempt.json").write_bytes(damaged)
    assert outbox.waiting() is None
    # A node reads it at each start, before it asks control anything.
    assert outbox.begun() is None
    assert not list((tmp_path / "outbox").iterdir())


def test_a_note_that_a_loss_of_power_has_emptied_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That a sync begins isn't synced: nothing is damaged."""
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "attempt.json").touch()
    assert Outbox(tmp_path).begun() is None
    assert not caplog.messages


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity.write(tmp_path, WHO)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        identity.write(tmp_path, replace(WHO, name="other"))
    assert identity.read(tmp_path) == WHO


def plan(generation: int) -> wire.Plan:
    return wire.Plan(f"sync-{generation}", 60.0, generation, "r", generation, 0)


def test_attempts_that_come_to_no_end_are_counted_for_one_generation(tmp_path: Path) -> None:
    assert Outbox(tmp_path).begun() is None
    for crashes in range(3):
        Outbox(tmp_path).begin(plan(1))
        assert Outbox(tmp_path).begun() == BegunSync("sync-1", 1, 1, crashes)
    Outbox(tmp_path).begin(plan(2))
    assert Outbox(tmp_path).begun() == BegunSync("sync-2", 2, 2, 0)
    Outbox(tmp_path).end()
    Outbox(tmp_path).end()
    assert Outbox(tmp_path).begun() is None


def test_a_report_whose_keeping_failed_at_its_last_step_waits_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in its place by then, and goes before the next poll."""

    def full(_: Path) -> None:
        raise OSError("the disk is full")

    outbox, update = Outbox(tmp_path), wire.SyncUpdate(status="succeeded")
    outbox.keep("sync-1", update)
    outbox.clear("sync-1")
    with monkeypatch.context() as patched:
        patched.setattr(files, "sync_folder", full)
        with pytest.raises(OSError, match="the disk is full"):
            outbox.keep("sync-2", update)
    assert outbox.waits
    assert outbox.waiting() == Waiting("sync-2", update)
