"""What a shell completes, in a bash of its own with what `completion bash` prints."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadlines import scaled
from tests.support.shell_programs import ShellPrograms, shell_programs

PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def programs() -> Iterator[ShellPrograms]:
    with shell_programs() as made:
        yield made


def completed(programs: ShellPrograms, program: str, *words: str) -> set[str]:
    """What bash offers where the last word is completed."""
    function = f"_{program.replace('-', '_')}_completion"
    script = f"""
        eval "$({program} completion)"
        [[ $(complete -p {program}) == *" -F {function} {program}" ]] || exit 9
        COMP_WORDS=({program} "$@"); COMP_CWORD=$#
        {function} {program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{programs.folder}:{os.environ['PATH']}", "SHELL": "/bin/bash"}
    command = ["bash", "--norc", "-c", script, "bash", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as shell:
        assert programs.run(shell, scaled(120)) == 0
        assert shell.stdout is not None
        return set(shell.stdout.read().decode().split())


@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [
        ("skerry", ["rel"], {"release"}),
        ("skerry", ["release", "cr"], {"create"}),
        ("skerry", ["release", "create", "--allow-l"], {"--allow-loss"}),
        ("skerry", ["function", "push", "notes", "--sql", ""], {"none", "read", "write"}),
        ("skerry-edge", ["check"], {"check", "check-database"}),
        ("skerry-edge", ["status", "--sta"], {"--state"}),
    ],
)
def test_a_shell_completes(programs: ShellPrograms, program: str, words: list[str], offered: set[str]) -> None:
    assert completed(programs, program, *words) == offered


@pytest.mark.parametrize(
    "words", ["skerry function push no", "skerry function push notes no", "skerry function build no", "skerry dev no"]
)
def test_folders_and_files_are_for_the_shell_to_complete(words: str) -> None:
    asked = words.split()
    environment = {
        **os.environ,
        "_SKERRY_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(asked),
        "COMP_CWORD": str(len(asked) - 1),
    }
    command = [sys.executable, "-m", "control.cli"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=scaled(60))
    assert ended.stdout.strip() in {"file,no", "dir,no"}


@pytest.mark.parametrize("program", ["skerry", "skerry-edge"])
def test_other_shells_have_a_script_and_an_unknown_one_is_refused(program: str) -> None:
    def ran(shell: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAMS / program), "completion", *arguments]
        return subprocess.run(
            command, env={**os.environ, "SHELL": shell}, capture_output=True, text=True, check=False, timeout=scaled(60)
        )

    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    assert f"{variable}=zsh_complete" in ran("/bin/bash", "zsh").stdout
    assert f"{variable}=fish_complete" in ran("/usr/bin/fish").stdout
    refused = ran("/bin/tcsh")
    assert refused.returncode == 2
    assert "bash, zsh, fish" in refused.stderr
