"""What control is told by its environment, and what it refuses to be told."""

import resource
import tempfile
from pathlib import Path

import pytest

from control.settings import ControlSettingsError, from_environment, is_loopback

GOOD = {
    "SKERRY_METADATA_URL": "postgresql://u:p%40ss@127.0.0.1:5432/skerry",
    "SKERRY_ARTIFACTS_URL": "http://KEY:SE%2FCRET@127.0.0.1:9000/artifacts",
}


def test_the_two_services_are_all_that_is_needed() -> None:
    settings = from_environment(GOOD)
    assert settings.port == 8443
    address = settings.store_address()
    assert (address.endpoint, address.key, address.secret, address.bucket) == (
        "http://127.0.0.1:9000",
        "KEY",
        "SE/CRET",
        "artifacts",
    )


def test_values_are_read_as_their_types(tmp_path: Path) -> None:
    pem = tmp_path / "a.pem"
    pem.write_text("x")
    settings = from_environment(
        {**GOOD, "SKERRY_PORT": "1", "SKERRY_HOLD": "2.5", "SKERRY_TLS_CERT": str(pem), "SKERRY_TLS_KEY": str(pem)}
    )
    assert (settings.port, settings.hold, settings.tls_cert) == (1, 2.5, pem)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"SKERRY_METADATA_URL": ""}, "SKERRY_METADATA_URL"),
        ({"SKERRY_ARTIFACTS_URL": ""}, "SKERRY_ARTIFACTS_URL"),
        ({"SKERRY_METADATA_URL": "mysql://u@127.0.0.1/x"}, "SKERRY_METADATA_URL"),
        ({"SKERRY_METADATA_URL": "postgresql://u:hunter2@db.example/x"}, "sslmode=verify-full"),
        ({"SKERRY_METADATA_URL": "postgresql://u:hunter2@db.example/x?sslmode=prefer"}, "sslmode=verify-full"),
        ({"SKERRY_ARTIFACTS_URL": "http://K:hunter2@minio.example/b"}, "https"),
        ({"SKERRY_ARTIFACTS_URL": "https://minio.example/b"}, "KEY:SECRET"),
        ({"SKERRY_ARTIFACTS_URL": "https://K:hunter2@minio.example"}, "BUCKET"),
        ({"SKERRY_ARTIFACTS_PUBLIC_URL": "http://minio.example"}, "SKERRY_ARTIFACTS_PUBLIC_URL"),
        ({"SKERRY_ARTIFACTS_DELIVERY": "pigeon"}, "SKERRY_ARTIFACTS_DELIVERY"),
        ({"SKERRY_PORT": "http"}, "SKERRY_PORT"),
        ({"SKERRY_PORT": "70000"}, "SKERRY_PORT"),
        ({"SKERRY_ARTIFACT_LIMIT": "0"}, "SKERRY_ARTIFACT_LIMIT"),
        ({"SKERRY_CREDENTIAL_LIFE": "0"}, "SKERRY_CREDENTIAL_LIFE"),
        ({"SKERRY_CREDENTIAL_LIFE": "100", "SKERRY_CREDENTIAL_RETURN": "99"}, "SKERRY_CREDENTIAL_RETURN"),
        ({"SKERRY_STALL_LIMIT": "0.09"}, "SKERRY_STALL_LIMIT"),
        ({"SKERRY_CREDENTIAL_RETURN": "inf"}, "SKERRY_CREDENTIAL_RETURN"),
        ({"SKERRY_TLS_CERT": "/nowhere.pem"}, "SKERRY_TLS_KEY"),
        ({"SKERRY_CA_CERT": "/nowhere.pem"}, "SKERRY_CA_CERT"),
    ],
)
def test_what_can_not_be_is_refused_by_name_and_without_the_secret(change: dict[str, str], names: str) -> None:
    with pytest.raises(ControlSettingsError) as refused:
        from_environment({**GOOD, **change})
    assert names in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_disk_that_takes_nothing_keeps_nobody_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(FileNotFoundError):
            tempfile.gettempdir()
        assert from_environment(GOOD).spool == Path("/tmp")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_secrets_are_not_in_what_settings_print() -> None:
    settings = from_environment(GOOD)
    assert "p%40ss" not in repr(settings)
    assert "CRET" not in repr(settings) + repr(settings.store_address())


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:p@db.example/x?sslmode=verify-full", "postgresql://u:p@[::1]:5/x", "postgresql://u@localhost/x"],
)
def test_encrypted_or_local_databases_are_taken(url: str) -> None:
    assert from_environment({**GOOD, "SKERRY_METADATA_URL": url}).metadata_url == url


@pytest.mark.parametrize(("host", "local"), [("127.0.0.5", True), ("::1", True), ("10.0.0.1", False), ("local", False)])
def test_what_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local
