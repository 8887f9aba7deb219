import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest

from control.access import certificates
from control.local import pki
from tests.support.deadlines import scaled


def handshake(files: pki.Pki, ca: str, name: str, client_version: ssl.TLSVersion | None = None) -> str | None:
    """Connect once over TLS and return the version that both agreed on."""
    ours, theirs = socket.socketpair()
    client = ssl.create_default_context(cafile=ca)
    if client_version:
        client.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        client.maximum_version = client_version

    def serve() -> None:
        try:
            with certificates.server_context(files.certificate, files.key).wrap_socket(
                theirs, server_side=True
            ) as server:
                server.recv(1)
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=name) as connection:
            connection.sendall(b"x")
            return connection.version()
    finally:
        ours.close()
        thread.join(scaled(10))
        theirs.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "control.example", "10.1.2.3"])
def test_a_client_that_trusts_the_authority_verifies_the_server(tmp_path, name):
    files = pki.ensure(tmp_path / "pki", ["control.example", "10.1.2.3"])
    assert handshake(files, str(files.ca), name) == "TLSv1.3"


def test_a_client_refuses_other_names_and_other_authorities(tmp_path):
    files = pki.ensure(tmp_path / "one")
    other = pki.ensure(tmp_path / "two")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, str(files.ca), "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, str(other.ca), "localhost")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_the_server_speaks_tls_1_2_and_nothing_older(tmp_path):
    files = pki.ensure(tmp_path)
    assert handshake(files, str(files.ca), "localhost", ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(files, str(files.ca), "localhost", ssl.TLSVersion.TLSv1_1)


def test_keys_are_private_and_everything_is_kept(tmp_path):
    files = pki.ensure(tmp_path / "pki")
    assert [(tmp_path / "pki" / n).stat().st_mode & 0o777 for n in ("ca.key", "server.key")] == [0o600, 0o600]
    before = {p.name: p.read_bytes() for p in (tmp_path / "pki").iterdir()}
    assert pki.ensure(tmp_path / "pki") == files
    assert {p.name: p.read_bytes() for p in (tmp_path / "pki").iterdir()} == before


def test_the_fingerprint_is_that_of_the_authority(tmp_path):
    import hashlib

    files = pki.ensure(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(files.ca.read_text())
    assert files.fingerprint == hashlib.sha256(der).hexdigest() == certificates.fingerprint(files.ca.read_bytes())
    with pytest.raises(ValueError, match="PEM"):
        certificates.fingerprint("nothing")


def test_a_server_certificate_near_its_end_is_renewed_and_the_authority_stays(tmp_path):
    files = pki.ensure(tmp_path)
    old = files.certificate.read_bytes()
    soon = datetime.now(UTC) + pki.SERVER_LIFE - pki.RENEW_BEFORE
    assert pki.ensure(tmp_path, now=soon - timedelta(days=1)).certificate.read_bytes() == old
    renewed = pki.ensure(tmp_path, now=soon + timedelta(days=1))
    assert renewed.certificate.read_bytes() != old
    assert renewed.fingerprint == files.fingerprint


def test_a_new_name_makes_a_new_server_certificate(tmp_path):
    old = pki.ensure(tmp_path).certificate.read_bytes()
    files = pki.ensure(tmp_path, ["edge.example"])
    assert files.certificate.read_bytes() != old
    assert handshake(files, str(files.ca), "edge.example")


@pytest.mark.parametrize("lost", ["ca.key", "ca.pem", "server.key", "server.pem"])
def test_a_lost_file_is_made_again_to_fit(tmp_path, lost):
    pki.ensure(tmp_path)
    (tmp_path / lost).unlink()
    files = pki.ensure(tmp_path)
    assert handshake(files, str(files.ca), "localhost")


def test_a_damaged_file_is_named(tmp_path):
    pki.ensure(tmp_path)
    (tmp_path / "ca.key").write_text("nothing")
    with pytest.raises(ValueError, match=r"ca\.key holds no elliptic-curve key"):
        pki.ensure(tmp_path)
