"""The files of a node's certificate: links to them, the authorities of clients, and keys with a password."""

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from edge_runtime.files import FileUnfit
from edge_runtime.web import tls_files
from edge_runtime.web.tls_files import TlsFiles
from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def started(*paths: Path | None) -> TlsFiles:
    certificate, key, client_ca = paths
    assert certificate is not None
    assert key is not None
    made = TlsFiles(certificate, key, client_ca)
    made.start()
    return made


def test_links_are_followed_to_the_files_that_they_name(tmp_path: Path, authority: Authority) -> None:
    """As tools leave them that renew certificates."""
    archive = tmp_path / "archive"
    authority.issue("node").put(archive, "node")
    for name in ("node.pem", "node.key"):
        (tmp_path / name).symlink_to(archive / name)
    made = started(tmp_path / "node.pem", tmp_path / "node.key", None)
    before = made.context
    made.look()
    assert made.context is before
    authority.issue("node").put(archive, "node")
    made.look()
    assert made.context is not before


def test_other_authorities_of_clients_are_read(tmp_path: Path, authority: Authority) -> None:
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.certificate)
    made = started(*authority.issue("node").put(tmp_path, "node"), clients)

    def names() -> set[str]:
        return {str(ca["serialNumber"]) for ca in made.context.get_ca_certs()}

    first = names()
    clients.write_bytes(Authority("another").certificate)
    made.look()
    assert len(first) == len(names()) == 1
    assert names() != first
    clients.write_text("nothing")
    before = made.context
    made.look()
    assert "has no certificates in PEM" in made.error
    assert made.context is before


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("node").put(tmp_path, "node")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    opened = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(opened.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(FileUnfit, match="has a password"):
        started(certificate, key, None)


def handshake(made: TlsFiles, client: ssl.SSLContext) -> ssl.SSLObject:
    """The node's side of a connection, after both have shown what they have. Raises: ssl.SSLError."""
    to_node, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    node = made.context.wrap_bio(to_node, to_client, server_side=True)
    caller = client.wrap_bio(to_client, to_node, server_hostname="localhost")
    waiting = [caller, node]
    for turn in range(20):
        side = waiting[turn % 2]
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert node.version() is not None
    return node


def test_a_clients_own_certificate_is_taken_in_the_place_of_its_authority(tmp_path: Path, authority: Authority) -> None:
    till, other = authority.issue("till"), authority.issue("other")
    clients = tmp_path / "clients.pem"
    clients.write_bytes(till.certificate)
    made = started(*authority.issue("node").put(tmp_path, "node"), clients)
    node = handshake(made, authority.context(till.put(tmp_path, "till")))
    assert node.getpeercert(True) == ssl.PEM_cert_to_DER_cert(till.certificate.decode())
    with pytest.raises(ssl.SSLError):
        handshake(made, authority.context(other.put(tmp_path, "other")))


def test_a_connection_speaks_http_1_1_and_changes_its_keys_for_no_client(tmp_path: Path, authority: Authority) -> None:
    made = started(*authority.issue("node").put(tmp_path, "node"), None)
    client = authority.context()
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert handshake(made, client).selected_alpn_protocol() == "http/1.1"
    # A client could have it compute without end by that; the standard library can't ask for it.
    assert made.context.options & ssl.OP_NO_RENEGOTIATION


def test_the_end_of_another_certificate_is_told_at_once(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return caplog.text.count("put another one in its place")

    made = started(*authority.issue("node", timedelta(days=20)).put(tmp_path, "node"), None)
    made.look()
    assert told() == 1
    authority.issue("node", timedelta(days=10)).put(tmp_path, "node")
    made.look()
    made.look()
    assert told() == 2


def test_each_handshake_that_fails_is_counted_and_few_are_told(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    made = started(*authority.issue("node").put(tmp_path, "node"), None)
    for _ in range(3):
        made.note_failure("", "it spoke HTTP")
    assert made.status()["failed_handshakes"] == 3
    assert [line for line in caplog.messages if "a TLS handshake" in line] == [
        "a TLS handshake with a client failed, number 1 so far: it spoke HTTP"
    ]


def test_the_end_of_old_certificates_is_read(tmp_path: Path, authority: Authority) -> None:
    """Those of the first form, which have no version; and years of two figures."""
    certificate = tmp_path / "old.pem"
    der = ssl.PEM_cert_to_DER_cert(authority.issue("n", timedelta(days=20)).certificate.decode())
    certificate.write_text(ssl.DER_cert_to_PEM_cert(der))
    wanted = tls_files._end_of(certificate)
    assert wanted is not None
    # Both sequences that it begins with have lengths of two bytes; the version is the first element of the second one.
    assert (der[:2], der[4:6], der[8:13]) == (b"\x30\x82", b"\x30\x82", b"\xa0\x03\x02\x01\x02")
    whole, signed = [(int.from_bytes(der[at : at + 2]) - 5).to_bytes(2) for at in (2, 6)]
    certificate.write_text(ssl.DER_cert_to_PEM_cert(b"\x30\x82" + whole + b"\x30\x82" + signed + der[13:]))
    assert tls_files._end_of(certificate) == wanted
    # 1999 is written as 99.
    year = f"{datetime.fromtimestamp(wanted, UTC):%y%m%d%H%M%SZ}".encode()
    assert der.count(year) == 1
    certificate.write_text(ssl.DER_cert_to_PEM_cert(der.replace(year, b"991231235959Z")))
    assert tls_files._end_of(certificate) == datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
