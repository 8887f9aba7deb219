"""What the answer to an upload means, which places are asked for, and when a node tries again."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import wire
from control.protocol.wire import UploadedFile
from edge_runtime.backup import upload_rules
from edge_runtime.backup.local_files import WaitingFile
from edge_runtime.backup.upload_rules import Comparison, Outcome

MD5 = "0cc175b9c0f1b6a831c399e269772661"
JITTER = st.floats(0, 1, exclude_max=True)


def waiting(first: int, last: int, level: int = 0) -> WaitingFile:
    return WaitingFile(Path(), level, first, last, 1)


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (412, "http_412", Outcome.THERE),
        (412, "backup_file_exists", Outcome.THERE),
        (409, "backup_ended", Outcome.ENDED),
        (403, "http_403", Outcome.NO_PLACE),
        (403, "node_revoked", Outcome.LATER),
        (409, "http_409", Outcome.LATER),
        (409, "backup_off", Outcome.LATER),
        (401, "unauthorized", Outcome.LATER),
        (400, "http_400", Outcome.LATER),
        (429, "too_many_acts", Outcome.LATER),
        (503, "http_503", Outcome.LATER),
    ],
)
def test_an_answer_means_one_thing(status: int, code: str, outcome: Outcome) -> None:
    assert upload_rules.meaning(status, code) is outcome


def test_only_the_same_bytes_are_the_same_file() -> None:
    assert upload_rules.comparison(4, MD5, UploadedFile(4, MD5)) is Comparison.SAME
    assert upload_rules.comparison(4, MD5, UploadedFile(5, MD5)) is Comparison.OTHER
    assert upload_rules.comparison(4, MD5, UploadedFile(4, "0" * 32)) is Comparison.OTHER
    assert upload_rules.comparison(4, MD5, UploadedFile(5, "")) is Comparison.OTHER
    assert upload_rules.comparison(4, MD5, UploadedFile(4, "")) is Comparison.UNKNOWN


def test_places_are_asked_for_shipments_to_come_as_far_as_they_are_of_use() -> None:
    snapshot, shipment = waiting(1, 7, 9), waiting(8, 8)
    names = [f"9/{1:016x}-{7:016x}.ltx", f"0/{8:016x}-{8:016x}.ltx"]
    assert upload_rules.names_to_ask([snapshot, shipment], 10, 0) == names
    # In an hour, less the minute before its end, there are 354 of them, and 64 places at most.
    asked = upload_rules.names_to_ask([snapshot, shipment], 10, 3600)
    assert len(asked) == wire.MOST_UPLOADS
    assert asked[:3] == [*names, f"0/{9:016x}-{9:016x}.ltx"]
    assert asked[-1] == f"0/{8 + 62:016x}-{8 + 62:016x}.ltx"
    # In five minutes, less a minute, there are four of them.
    assert len(upload_rules.names_to_ask([shipment], 60, 300)) == 1 + 4
    assert upload_rules.names_to_ask([shipment], 3600, 3600) == names[1:]
    assert upload_rules.names_to_ask([shipment], 0, 3600) == names[1:]
    # What is merged next has a name that nobody knows.
    merged = waiting(8, 10)
    assert upload_rules.names_to_ask([snapshot, merged], 10, 3600) == [names[0], f"0/{8:016x}-{10:016x}.ltx"]


@given(st.integers(1, 200), st.floats(0, 86_400), st.floats(0, 3600))
def test_never_more_places_than_control_gives(count: int, interval: float, life: float) -> None:
    files = [waiting(number, number) for number in range(1, count + 1)]
    names = upload_rules.names_to_ask(files, interval, life)
    assert min(count, wire.MOST_UPLOADS) <= len(names) <= wire.MOST_UPLOADS
    assert len(set(names)) == len(names)


def test_a_place_is_used_until_shortly_before_its_end() -> None:
    assert upload_rules.valid_until(1000, 3600) == 4540
    assert upload_rules.valid_until(1000, 10) == 1005


@given(st.integers(1, 10**6), JITTER)
def test_attempts_become_rarer_up_to_one_a_minute(failures: int, jitter: float) -> None:
    pause = upload_rules.pause(failures, jitter, None)
    assert 0.75 <= pause <= 60
    assert failures < 7 or pause >= 45


@given(st.integers(1, 10**6), JITTER, st.floats(0, 10**9))
def test_who_asks_for_a_pause_gets_it_and_an_hour_at_most(failures: int, jitter: float, asked: float) -> None:
    pause = upload_rules.pause(failures, jitter, asked)
    assert pause >= min(asked, 3600)
    assert pause <= max(60, 1.25 * 3600)


@given(st.integers(1, 2**30))
def test_a_piece_is_an_eighth_of_a_second_at_most(bandwidth: int) -> None:
    assert 1 <= upload_rules.piece(bandwidth) <= upload_rules.CHUNK
    assert upload_rules.piece(bandwidth) <= max(1, bandwidth / 8)


def test_without_a_limit_pieces_are_whole() -> None:
    assert upload_rules.piece(0) == upload_rules.CHUNK


def test_an_error_fits_into_what_polls_report() -> None:
    assert upload_rules.told("", "one", "", "two") == "one; two"
    assert upload_rules.told("", "") == ""
    assert len(upload_rules.told("x" * 400, "y" * 400)) == upload_rules.TEXT
    assert len(upload_rules.too_large(f"9/{1:016x}-{2**63 - 1:016x}.ltx", 2**50)) <= upload_rules.TEXT
