"""A node's settings: what is refused, and which flags there are."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge_runtime.cli.main import main
from edge_runtime.cli.run import run
from edge_runtime.settings import EdgeSettings, EdgeSettingsError
from edge_runtime.state import State, StateUnfit

STATE = Path("state")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"listen": "0.0.0.0:80"}, "listen"),
        ({"listen": "192.0.2.1:80"}, "listen"),
        ({"listen": "example.org:80"}, "listen"),
        ({"listen": "127.0.0.1"}, "listen"),
        ({"listen": "127.0.0.1:99999"}, "listen"),
        ({"listen": ":80", "token": "0123456789abcdef"}, "listen"),
        ({"token": "short"}, "token"),
        ({"workers": 0}, "workers"),
        ({"synchronous": "OFF"}, "synchronous"),
        ({"fence": "off"}, "fence"),
        ({"worker_memory": 1}, "worker_memory"),
        ({"queue_wait": 0}, "queue_wait"),
    ],
)
def test_wrong_settings_are_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgeSettingsError, match=named):
        EdgeSettings(state=STATE, **given)


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://collector.example:4318", True),
        ("https://collector.example/otlp", True),
        ("http://127.0.0.1:4318", True),
        ("http://[::1]:4318", True),
        ("http://localhost:4318", True),
        ("http://collector.example:4318", False),
        ("http://127.0.0.1.example:4318", False),
        ("collector.example:4318", False),
        ("ftp://127.0.0.1", False),
        ("https://", False),
        ("https://collector.example:99999", False),
        ("https://collector.example?a=b", False),
        ("https://collector.example#a", False),
        ("https://user:hunter2@collector.example", False),
        ("https://:hunter2@collector.example", False),
        ("https://@collector.example", False),
    ],
)
def test_where_traces_may_be_sent(url: str, fits: bool) -> None:
    if fits:
        EdgeSettings(state=STATE, otlp_url=url)
        return
    with pytest.raises(EdgeSettingsError, match="otlp_url") as refused:
        EdgeSettings(state=STATE, otlp_url=url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:8087", "localhost:8087"])
def test_loopback_needs_no_token(listen: str) -> None:
    assert EdgeSettings(state=STATE, listen=listen).loopback


def test_a_token_opens_other_addresses_and_is_never_shown() -> None:
    settings = EdgeSettings(state=STATE, listen="0.0.0.0:80", token="0123456789abcdef")
    assert "0123456789abcdef" not in repr(settings)


def test_a_file_of_callers_opens_other_addresses() -> None:
    assert not EdgeSettings(state=STATE, listen="0.0.0.0:80", callers=STATE / "callers.toml").loopback


def test_every_setting_has_a_flag() -> None:
    flags = {option.name for option in run.params} - {"form", "debug"}
    assert flags == {field.name for field in dataclasses.fields(EdgeSettings)} - {"token", "token_file"}


def test_run_says_what_is_wrong(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["run", "--state", str(tmp_path / "state"), "--listen", "0.0.0.0:1"])
    assert ran.exit_code == 2
    assert "SKERRY_EDGE_TOKEN" in ran.output
    ran = CliRunner().invoke(main, ["run", "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0"])
    assert ran.exit_code == 1
    assert "skerry-edge join" in ran.output


def test_a_state_directory_has_one_owner(tmp_path: Path) -> None:
    with State(tmp_path / "state", 1.0) as state:
        assert (state.path.stat().st_mode & 0o777, state.aot.stat().st_mode & 0o777) == (0o700, 0o700)
        with pytest.raises(StateUnfit, match="in use by another"):
            State(tmp_path / "state", 0.05)
    with State(tmp_path / "state", 1.0):
        pass


def test_what_killed_compilations_left_is_gone_at_a_start(tmp_path: Path) -> None:
    """Whatever process has the number now that their folders are named after: in a container it is 1 at each start."""
    left = tmp_path / "state" / "aot" / ".compile-1-abc"
    left.mkdir(parents=True)
    (left / "module.so").write_bytes(b"half")
    with State(tmp_path / "state", 1.0):
        assert not left.exists()


def test_a_state_directory_that_others_could_read_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    with State(folder, 1.0):
        assert folder.stat().st_mode & 0o777 == 0o700
