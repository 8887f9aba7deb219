"""What is kept of callers over a change of their file, and a file that can't be read just then."""

import os
from pathlib import Path

import pytest

from edge_runtime.files import FileUnfit
from edge_runtime.web import callers_file
from edge_runtime.web.callers import Caller, Callers
from edge_runtime.web.parser import Exchange

TOKEN = b"a-token"


def put(path: Path, more: str, token: bytes = TOKEN, name: str = "till") -> None:
    digest = callers_file.token_digest(token).hex()
    path.write_text(f'[[caller]]\nname = "{name}"\ntoken_sha256 = "{digest}"\nfunctions = "all"\n{more}\n')
    path.chmod(0o600)


def started(path: Path, more: str) -> Callers:
    put(path, more)
    made = Callers(path, certificates=False)
    made.start()
    return made


def found(callers: Callers, token: bytes = TOKEN) -> Caller:
    caller = callers.of_token(token)
    assert caller is not None
    return caller


def test_what_a_caller_has_used_and_its_counts_stay_over_a_change(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    callers = started(file, "rate = 1\nburst = 2")
    before = found(callers)
    assert [before.too_often(5.0), before.too_often(5.0)] == [None, None]
    put(file, "rate = 1\nburst = 2\npages = true", b"another")
    callers.look()
    assert callers.of_token(TOKEN) is None
    after = found(callers, b"another")
    refusal = after.too_often(5.0)
    assert refusal is not None
    assert (refusal.code, refusal.status, refusal.retry_after) == ("rate_exceeded", 429, 1)
    # A call of the old entry that ends now is the same caller's.
    before.count("f", "ok")
    assert after.counts == {("", "rate_exceeded"): 1, ("f", "ok"): 1}
    # Another rate begins anew.
    put(file, "rate = 2\nburst = 2", b"another")
    callers.look()
    assert found(callers, b"another").too_often(5.0) is None


def test_a_file_that_cant_be_read_just_then_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "callers.toml"
    callers = started(file, "")
    put(file, "pages = true")
    with monkeypatch.context() as broken:

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        broken.setattr(os, "read", fail)
        callers.look()
        callers.look()
    assert "can't be read: Input/output error" in callers.error
    assert caplog.text.count("can't be read") == 1
    assert found(callers).no_pages() is not None
    callers.look()
    assert callers.error == ""
    assert found(callers).no_pages() is None
    assert TOKEN.decode() not in caplog.text


def test_nobody_is_known_by_nothing(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    put(file, "", b"")
    callers = Callers(file, certificates=False)
    callers.start()
    asked = Exchange("POST", b"/functions/f", b"", [])
    for token in (b"", b" ", callers_file.token_digest(b"").hex().encode()):
        refusal = callers.admit(asked, b"", token, page=False)
        assert refusal is not None
        assert refusal.code == "caller_unknown"
    assert callers.unknown == 3


def test_certificates_are_for_nodes_that_ask_for_them(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    put(file, f'certificate_sha256 = "{"ab" * 32}"')
    with pytest.raises(FileUnfit, match="SKERRY_EDGE_TLS_CLIENT_CA"):
        Callers(file, certificates=False).start()
    asks = Callers(file, certificates=True)
    asks.start()
    assert asks.of_certificate(bytes.fromhex("ab" * 32)) is found(asks)
    assert asks.of_certificate(b"") is None
