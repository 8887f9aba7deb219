"""The files of a node's certificate: links to them, the authorities of clients, and keys with a password."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from edge_runtime.files import FileUnfit
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
