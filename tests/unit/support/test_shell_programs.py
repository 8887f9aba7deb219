"""What a shell starts as `skerry` is forked by the test, and does in the shell what the program does."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.shell_programs import ShellPrograms, shell_programs

WAITING = "skerry-edge logs --state $PWD/state -f"


@pytest.fixture(scope="module")
def programs() -> Iterator[ShellPrograms]:
    with shell_programs() as made:
        yield made


@pytest.fixture(autouse=True)
def _state(tmp_path: Path) -> None:
    """What a command that never ends reads."""
    (tmp_path / "state").mkdir()


def ran(programs: ShellPrograms, folder: Path, script: str, seconds: float = 60.0) -> tuple[int, str]:
    """Status and output of a shell."""
    with (folder / "out").open("w+") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env={"PATH": f"{programs.folder}:/usr/bin:/bin", "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            return programs.run(shell, seconds), (folder / "out").read_text()
        finally:
            shell.kill()
            shell.wait()


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("skerry --version", 0, "skerry, version"),
        ("skerry-edge --version | cat >word; cat word", 0, "skerry-edge, version"),
        ("skerry nothing", 2, "Error: No such command 'nothing'"),
        ("cd state && skerry function new notes --lang c >/dev/null && ls notes", 0, "function.toml"),
        ("SKERRY_EDGE_LISTEN=nonsense skerry-edge status || echo $?", 0, "nonsense"),
        ("umask 027; skerry function new notes --lang c >/dev/null; stat -c %a notes/main.c", 0, "640"),
    ],
)
def test_words_streams_folder_and_status_are_those_of_the_shell(
    programs: ShellPrograms, tmp_path: Path, script: str, status: int, said: str
) -> None:
    ended, output = ran(programs, tmp_path, script)
    assert said in output
    assert ended == status, output


@pytest.mark.parametrize(("name", "number"), [("TERM", 15), ("KILL", 9)])
def test_a_signal_for_what_the_shell_has_started_ends_the_program(
    programs: ShellPrograms, tmp_path: Path, name: str, number: int
) -> None:
    there = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q \"cli[ ]logs --state $PWD/state\""
    script = f"""
        {WAITING} &
        until {there}; do sleep 0.05; done
        kill -{name} $!
        wait $!
        echo $?
        while {there}; do sleep 0.05; done
    """
    status, output = ran(programs, tmp_path, script)
    assert (status, output.splitlines()[-1]) == (0, str(128 + number))


def test_a_shell_that_takes_too_long_leaves_no_program(programs: ShellPrograms, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"no end within 2 s"):
        ran(programs, tmp_path, WAITING, 2.0)
    assert not [child for child in psutil.Process().children() if "edge_runtime.cli" in command(child)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
