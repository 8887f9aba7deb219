"""The file of secrets: who may have it, what it may be, and that no value gets out of it by an error."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control.protocol import wire
from control.protocol.manifest import Manifest
from edge_runtime.files import FileUnfit
from edge_runtime.ipc import frames
from edge_runtime.release import secrets
from edge_runtime.release.secrets import Secrets

VALUE = "a-value-that-nobody-may-see"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def function(name: str, *names: str) -> frames.LocalFunction:
    return frames.LocalFunction(name, 1, "0" * 64, Manifest(secrets=list(names)), "0" * 64)


def test_a_private_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "s", f'[orders]\nKEY = "{VALUE}"\nOTHER = ""\n[more]\n')
    assert secrets.read(path) == {"orders": {"KEY": VALUE, "OTHER": ""}, "more": {}}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_one_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(FileUnfit, match="chmod 600"):
        secrets.read(write(tmp_path / "s", f'[f]\nKEY = "{VALUE}"', mode))


def test_links_folders_pipes_and_other_peoples_files_are_refused(tmp_path: Path) -> None:
    real = write(tmp_path / "real", "")
    (tmp_path / "link").symlink_to(real)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe", "."):
        with pytest.raises(FileUnfit):
            secrets.read(tmp_path / name)
    if os.geteuid() == 0:
        os.chown(real, 12345, 12345)
        with pytest.raises(FileUnfit, match="12345"):
            secrets.read(real)


@pytest.mark.parametrize(
    "text",
    [
        f"KEY = {VALUE}",
        f'KEY = "{VALUE}"',
        f'[f]\nKEY = "{VALUE}',
        f'[f]\nKEY = "{VALUE}"\nKEY = "{VALUE}"',
        f'[f]\nKEY = ["{VALUE}"]',
        f'[f]\nKEY = "{VALUE}\\u0000"',
        f'[F]\nKEY = "{VALUE}"',
        f'[f]\nKEY = "{VALUE}"\n[f]\n',
        f'[f]\nKEY = "{VALUE * 4000}"',
        "[f]\nKEY = 1",
    ],
)
def test_an_unfit_file_is_told_without_its_values(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileUnfit) as unfit:
        secrets.read(write(tmp_path / "s", text))
    assert VALUE not in str(unfit.value)
    assert unfit.value.__context__ is None or unfit.value.__suppress_context__


def test_it_is_read_again_when_it_changes_and_used_on_when_it_gets_unfit(tmp_path: Path) -> None:
    kept = Secrets(tmp_path / "s")
    wants = [function("f", "KEY"), function("g")]
    assert kept.look() is False
    assert kept.of(wants) == {}
    assert [(name, failure.code) for name, failure in kept.lacking(wants).items()] == [("f", "secret_missing")]
    write(tmp_path / "s", f'[f]\nKEY = "{VALUE}"\nUNUSED = "x"\n[g]\nKEY = "y"')
    assert kept.look() is True
    assert kept.look() is False
    # A function gets what its manifest names, and nothing of another's.
    assert kept.of(wants) == {"f": {"KEY": VALUE}}
    assert kept.lacking(wants) == {}
    (tmp_path / "s").chmod(0o644)
    assert kept.look() is False
    assert kept.error
    assert kept.of(wants) == {"f": {"KEY": VALUE}}
    assert kept.lacking([function("g", "NEW")])["g"].code == "secrets_unfit"
    (tmp_path / "s").unlink()
    assert kept.look() is True
    assert not kept.error
    assert kept.lacking(wants)["f"].code == "secret_missing"


def test_a_file_that_cant_be_read_just_then_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Secrets(write(tmp_path / "s", f'[f]\nKEY = "{VALUE}"'))
    with monkeypatch.context() as broken:

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        broken.setattr(os, "read", fail)
        assert kept.look() is False
    assert "can't be read" in kept.error
    assert kept.look() is True
    assert not kept.error


def test_a_mode_that_changes_within_a_tick_of_the_clock_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is all that changes: a kernel may stamp both changes with the time of its last tick."""
    kept = Secrets(write(tmp_path / "s", f'[f]\nKEY = "{VALUE}"'))
    real = os.stat

    def stopped(*given: Any, **more: Any) -> Any:
        found = real(*given, **more)
        names = ("st_ino", "st_size", "st_mode", "st_uid")
        return SimpleNamespace(st_mtime_ns=1, st_ctime_ns=1, **{name: getattr(found, name) for name in names})

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stopped)
        assert kept.look() is True
        os.chmod(tmp_path / "s", 0o644)
        kept.look()
    assert "chmod 600" in kept.error


def test_no_value_is_in_a_repr() -> None:
    release = frames.LocalRelease("r", 1, 1, 0, [function("f", "KEY")])
    values = {"f": {"KEY": VALUE}}
    plan = wire.Plan("s", 1.0, 1, "r", 1, 0)
    for message in (frames.Load(1, release, values), frames.Apply(plan, release.functions, values)):
        assert VALUE not in repr(message)
        assert VALUE not in f"{message}"
        assert VALUE.encode() in frames.encode_json(message)
