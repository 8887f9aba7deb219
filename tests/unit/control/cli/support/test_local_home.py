"""Where the commands find what `skerry up` left."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from control.cli.support import logins
from control.cli.support.client import HOME_FILE, NotConnected, connection_settings, home
from control.cli.support.logins import Login, local_home


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project's folder, current, two below the one of `skerry up`."""
    for name in ("SKERRY_HOME", "SKERRY_URL", "SKERRY_TOKEN", "SKERRY_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / ".skerry").mkdir()
    (tmp_path / ".skerry" / HOME_FILE).write_text('{"url": "https://127.0.0.1:1", "token": "sko_here"}')
    folder = tmp_path / "shop" / "notes"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_it_is_found_from_a_folder_below(project: Path) -> None:
    assert connection_settings().token == "sko_here"
    # `skerry up` itself begins an installation in the current folder.
    assert home() == project / ".skerry"


def test_the_nearest_one_counts(project: Path) -> None:
    near = project.parent / ".skerry"
    near.mkdir()
    assert local_home(HOME_FILE) == project.parents[1] / ".skerry"
    (near / HOME_FILE).write_text('{"url": "https://127.0.0.1:2", "token": "sko_near"}')
    assert connection_settings().url == "https://127.0.0.1:2"


def test_one_of_another_user_above_does_not_count(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(NotConnected, match="no control to talk to"):
        connection_settings()
    monkeypatch.chdir(project.parents[1])
    assert connection_settings().token == "sko_here"


def test_a_folder_that_is_named_is_the_only_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_HOME", "elsewhere")
    assert local_home(HOME_FILE) == project / "elsewhere"
    with pytest.raises(NotConnected, match="elsewhere"):
        connection_settings()


def test_logins_at_once_are_all_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = [Login(f"https://{number}.example", "skl_", "anna", "2026-12-01T00:00:00Z", "") for number in range(8)]
    with ThreadPoolExecutor(len(made)) as threads:
        list(threads.map(logins.keep, made))
    assert {login.url for login in logins.read()} == {login.url for login in made}
    logins.forget(made[0].url)
    assert len(logins.read()) == 7
