"""Whose the state directory is: what another user makes there, such as root, would be closed to the node."""

import asyncio
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_runtime import wal
from edge_runtime.cli import support
from edge_runtime.cli.main import main as skerry_edge
from edge_runtime.cli.support import told_owner
from edge_runtime.state import State
from edge_runtime.sync import identity
from edge_runtime.sync.identity import Identity

JOIN = ("join", "--control", "https://localhost:1", "--name", "edge-1")
TOKEN = {"SKERRY_JOIN_TOKEN": "skj_00000000-0000-0000-0000-000000000000_" + "a" * 43}
AS_NOBODY = """
import os, sys
if not os.geteuid():
    # Where this tree lies may be closed to another user, as root's home is: its own folder is open all the same.
    here = os.getcwd()
    sys.path[:] = [(path or here).replace(here, "/proc/self/cwd", 1) for path in sys.path]
    sys.executable = sys.executable.replace(here, "/proc/self/cwd", 1)
    os.setgid(65534)
    os.setuid(65534)
from edge_runtime.cli.main import main as skerry_edge
skerry_edge(sys.argv[1:])
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user reaches: each pytest that begins closes those of `tmp_path` again."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.parametrize("arguments", [JOIN, ("run",)], ids=["join", "run"])
def test_another_user_neither_joins_nor_runs(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    done = CliRunner().invoke(skerry_edge, [*arguments, "--state", str(state)], env=TOKEN)
    assert done.exit_code == 1
    assert f"{state} belongs to the user" in done.output
    assert "sudo -u" in done.output
    assert not list(state.iterdir())


def test_a_user_without_a_name_is_told_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> pwd.struct_passwd:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    user = tmp_path.stat().st_uid
    assert told_owner(tmp_path).startswith(f"{tmp_path} belongs to the user {user}: run this as {user},")
    assert f"`sudo -u '#{user}' skerry-edge …`" in told_owner(tmp_path)


@pytest.mark.parametrize("arguments", [JOIN, ("run",), ("status",), ("doctor",)], ids=lambda given: given[0])
async def test_an_identity_of_another_user_is_told_with_what_opens_it(
    arguments: tuple[str, ...], open_folder: Path
) -> None:
    state = open_folder / "state"
    state.mkdir(mode=0o700)
    made = state / "identity.json"
    made.write_text("{}")
    made.chmod(0)
    if os.geteuid() == 0:
        os.chown(state, 65534, 65534)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AS_NOBODY, *arguments, "--state", str(state)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], **TOKEN},
        cwd=Path(support.__file__).parents[2],
    )
    out, _ = await process.communicate()
    told = out.decode()
    assert process.returncode != 0
    assert "Traceback" not in told
    assert f"as root: chown -R --reference={state} {state}" in told
    assert "skerry-edge join" not in told


async def test_a_database_of_another_user_is_told_with_what_opens_it(open_folder: Path) -> None:
    """As of root, who has looked into it with a program of SQLite's."""
    state = open_folder / "state"
    State(state, 0).close()
    identity.write(state, Identity("id", "edge-1", "default", "https://localhost:1", "secret", datetime.now(UTC)))
    made = state / wal.FILE
    if os.geteuid() == 0:
        for path in (state, *state.rglob("*")):
            os.chown(path, 65534, 65534)
    made.write_bytes(b"")
    made.chmod(0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AS_NOBODY, "run", "--state", str(state)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"]},
        cwd=Path(support.__file__).parents[2],
    )
    out, _ = await process.communicate()
    told = out.decode()
    assert process.returncode == 1
    assert "Traceback" not in told
    assert f"{made} is closed to this user" in told
    assert f"as root: chown -R --reference={state} {state}" in told


def test_a_join_without_a_token_names_the_variable(tmp_path: Path) -> None:
    done = CliRunner().invoke(skerry_edge, [*JOIN, "--state", str(tmp_path)])
    assert done.exit_code == 2
    assert "SKERRY_JOIN_TOKEN" in done.output
