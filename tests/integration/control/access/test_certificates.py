"""Control's certificate and the CAs that nodes are to trust: what is refused, what is read again, which ends are told.

Certificates and handshakes are real; only the time at which they are looked at is the test's.
"""

import logging
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control.access.certificates import CertificateError, ControlCertificates
from control.metrics import ControlMetrics
from control.settings import ControlSettings
from tests.support.certificates import Authority, Issued
from tests.support.clock import SetClock

LONG = timedelta(days=400)


@pytest.fixture(scope="module")
def old() -> Authority:
    return Authority("old", timedelta(days=900))


@pytest.fixture(scope="module")
def new() -> Authority:
    return Authority("new", timedelta(days=900))


def put(folder: Path, issued: Issued, *authorities: bytes, chain: bytes = b"") -> ControlSettings:
    """Put the files into their places, and return the settings that name them."""
    issued = Issued(issued.certificate + chain, issued.key)
    certificate, key = issued.put(folder, "control")
    ca = folder / "ca.pem"
    ca.write_bytes(b"".join(authorities))
    return ControlSettings(
        metadata_url="postgresql://a@127.0.0.1/a",
        artifacts_url="http://k:s@127.0.0.1:1/b",
        tls_cert=certificate,
        tls_key=key,
        ca_cert=ca if authorities else None,
    )


def started(settings: ControlSettings, clock: SetClock | None = None) -> ControlCertificates:
    made = ControlCertificates(settings, clock or SetClock(), ControlMetrics())
    made.start()
    return made


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder, old, new: put(folder, old.issue("ended", timedelta(days=-1)), old.certificate), "ended at"),
        (
            lambda folder, old, new: put(folder, old.issue("early", LONG, timedelta(days=2)), old.certificate),
            "set this machine's clock",
        ),
        (
            lambda folder, old, new: (folder / "control.key").write_bytes(old.issue("other").key),
            "aren't a certificate and its key",
        ),
        (lambda folder, old, new: (folder / "control.key").unlink(), "control.key can't be read"),
        (lambda folder, old, new: put(folder, new.issue("other", LONG), old.certificate), "nodes would refuse"),
        (lambda folder, old, new: (folder / "ca.pem").write_text("nothing"), "has no certificate"),
        (lambda folder, old, new: (folder / "control.pem").write_text("nothing"), "has no certificate"),
        (lambda folder, old, new: (folder / "control.pem").unlink(), "can't be read"),
    ],
)
def test_files_that_nodes_would_refuse_are_refused_at_the_start_and_later(
    tmp_path: Path, old: Authority, new: Authority, spoil: Callable[..., object], said: str
) -> None:
    settings = put(tmp_path, old.issue("control", LONG), old.certificate)
    served = started(settings)
    context, trust = served.context, served.trust
    spoil(tmp_path, old, new)
    with pytest.raises(CertificateError, match=said):
        started(settings)
    assert served.look() is False
    assert said in served.error
    assert (served.context, served.trust) == (context, trust)
    # Files that are good again are taken, also where nothing else changes.
    put(tmp_path, old.issue("control", LONG), old.certificate)
    assert served.look() is True
    assert not served.error
    assert served.context is not context


def test_a_key_that_is_closed_to_controls_user_is_told_with_what_opens_it(
    tmp_path: Path, old: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a renewal makes it that runs as root."""
    settings = put(tmp_path, old.issue("control", LONG), old.certificate)
    key, read = tmp_path / "control.key", Path.read_bytes

    def closed(path: Path) -> bytes:
        if path == key:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(CertificateError, match=r"can't be read by control's user .*: Permission denied") as refused:
        started(settings)
    assert f"chgrp {os.getegid()} {key} && chmod 0640 {key}" in str(refused.value)
    assert "aren't a certificate and its key" not in str(refused.value)


def test_a_ca_is_added_moved_to_and_dropped(tmp_path: Path, old: Authority, new: Authority) -> None:
    first = put(tmp_path, old.issue("control", LONG), old.certificate)
    served = started(first)
    before = served.trust
    assert before.fingerprint == old.digest

    # Moving or dropping first would lock nodes out.
    put(tmp_path, new.issue("control", LONG), old.certificate)
    assert not served.look()
    assert "A new CA is added there before" in served.error
    put(tmp_path, old.issue("control", LONG), new.certificate)
    assert not served.look()
    assert served.trust == before

    put(tmp_path, old.issue("control", LONG), new.certificate, old.certificate)
    assert served.look()
    both = served.trust
    assert both.digest not in ("", before.digest)
    assert both.pem.count(b"BEGIN CERTIFICATE") == 2
    # Who joins now must trust what control shows now, whatever comes first in the file.
    assert both.fingerprint == old.digest

    put(tmp_path, new.issue("control", LONG), old.certificate, new.certificate, chain=old.cross_sign(new))
    assert served.look()
    assert served.trust.digest == both.digest, "the order says nothing"
    assert served.trust.fingerprint == new.digest

    put(tmp_path, new.issue("control", LONG), new.certificate)
    assert served.look()
    assert served.trust.digest not in (before.digest, both.digest)


def test_an_end_is_told_from_thirty_days_before_once_a_day(
    tmp_path: Path, old: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    settings = put(tmp_path, old.issue("control", timedelta(days=40)), old.certificate)
    # Later than the second from which the certificate's days are counted.
    clock = SetClock(datetime.now(UTC))
    served = started(settings, clock)
    lines: list[list[tuple[int, str]]] = []
    for days in (0, 11, 0, 1, 29, 1):
        clock.advance(days * 86400)
        caplog.clear()
        served.look()
        lines.append([(r.levelno, r.message) for r in caplog.records if "own certificate" in r.message])
    assert [len(found) for found in lines] == [0, 1, 0, 1, 1, 1]
    assert lines[1][0][0] == logging.WARNING
    assert "in 28 days" in lines[1][0][1]
    assert lines[4][0][0] == logging.ERROR
    assert "nodes and operators refuse control" in lines[4][0][1]
    assert served.warnings()[0] == lines[4][0][1].removeprefix("certificates: ")
    [last_day, *_] = started(settings, SetClock(datetime.now(UTC) + timedelta(days=39, hours=12))).warnings()
    assert last_day.endswith((", in 11 h", ", in 12 h"))


def test_what_counts_is_the_first_end_on_the_way_to_the_ca(tmp_path: Path, new: Authority) -> None:
    old = Authority("old", timedelta(days=50))
    settings = put(tmp_path, old.issue("control", LONG), old.certificate, new.certificate)
    served = started(settings)
    left = served.ends[0].ends_at - datetime.now(UTC)
    assert timedelta(days=49) < left < timedelta(days=51)
    # Once control's certificate is of the new CA, the old one's end is none of its own.
    put(tmp_path, new.issue("control", LONG), old.certificate, new.certificate, chain=old.cross_sign(new))
    served.look()
    assert served.ends[0].ends_at - datetime.now(UTC) > timedelta(days=399)


def test_metrics_have_ends_only_where_there_are_certificates(tmp_path: Path, old: Authority) -> None:
    metrics = ControlMetrics()
    plain = ControlSettings(metadata_url="postgresql://a@127.0.0.1/a", artifacts_url="http://k:s@127.0.0.1:1/b")
    ControlCertificates(plain, SetClock(), metrics).start()
    assert b"expiry_timestamp" not in metrics.render()
    ControlCertificates(put(tmp_path, old.issue("c", LONG), old.certificate), SetClock(), metrics).start()
    told = metrics.render().decode()
    for name in ("skerry_certificate_expiry_timestamp_seconds 1.", "skerry_ca_expiry_timestamp_seconds 1."):
        assert name in told


def test_a_certificate_is_taken_once_it_is_good_though_no_file_changes(
    tmp_path: Path, old: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    # OpenSSL, which plays the node, goes by the time of day.
    clock = SetClock(datetime.now(UTC) - timedelta(days=3))
    served = started(put(tmp_path, old.issue("control", LONG), old.certificate), clock)
    context = served.context
    put(tmp_path, old.issue("early", LONG, -timedelta(days=2)), old.certificate)

    def look(*, anew: bool = False) -> int:
        """How often the log says why, of three looks."""
        caplog.clear()
        assert not any(served.look(anew=anew) for _ in range(3))
        return sum("set this machine's clock" in line for line in caplog.messages)

    assert look() == 1
    assert look() == 0, "it is said once"
    assert look(anew=True) == 3, "who asks for it is told"
    clock.advance(2 * 86400)
    assert served.look()
    assert not served.error
    assert served.context is not context


def test_files_that_have_not_changed_are_read_again_when_asked(tmp_path: Path, old: Authority) -> None:
    served = started(put(tmp_path, old.issue("control", LONG), old.certificate))
    context = served.context
    served.look()
    assert served.context is context
    served.look(anew=True)
    assert served.context is not context


def test_an_end_is_told_also_as_files_change(tmp_path: Path, old: Authority, caplog: pytest.LogCaptureFixture) -> None:
    clock = SetClock(datetime.now(UTC))
    settings = put(tmp_path, old.issue("control", timedelta(days=40)), old.certificate)
    served = started(settings, clock)

    def told() -> int:
        caplog.clear()
        served.look()
        return sum("control's own certificate ends at" in line for line in caplog.messages)

    assert told() == 0
    put(tmp_path, old.issue("control", timedelta(days=20)), old.certificate)
    assert told() == 1, "of the one that was just taken"
    clock.advance(2 * 86400)
    (tmp_path / "control.pem").write_text("nothing")
    assert told() == 1, "while another can't be used"


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path, old: Authority) -> None:
    settings = put(tmp_path, old.issue("control", LONG), old.certificate)
    key = serialization.load_pem_private_key((tmp_path / "control.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    closed = key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret"))
    (tmp_path / "control.key").write_bytes(closed)
    with pytest.raises(CertificateError, match="has a password"):
        started(settings)


def test_a_metric_has_the_end_of_the_last_ca(tmp_path: Path) -> None:
    """Nodes reach control until then."""
    metrics, days = ControlMetrics(), {name: timedelta(days=n) for name, n in (("short", 50), ("last", 700))}
    short, last = (Authority(name, life) for name, life in days.items())
    settings = put(tmp_path, last.issue("control", LONG), short.certificate, last.certificate)
    ControlCertificates(settings, SetClock(), metrics).start()
    [told] = re.findall(r"^skerry_ca_expiry_timestamp_seconds (\S+)$", metrics.render().decode(), re.MULTILINE)
    wanted = (datetime.now(UTC) + days["last"]).timestamp()
    assert abs(float(told) - wanted) < 86400
