"""Which version of Skerry this is: its number, and the commit that it was built from.

Wheels and git archives have the commit and its date in `commit.txt`, which is filled in when they are made
(`scripts/wheel_commit.py`, `.gitattributes`). In a checkout the commit is read from git's files, so that starting a
node doesn't need another process. This module imports nothing else of the project, since both packages share it.
"""

import contextlib
import functools
from pathlib import Path
from typing import NamedTuple

LENGTH = 12
"""Digits of a commit's id that are shown."""


class ProgramVersion(NamedTuple):
    """What is known about a version."""

    number: str
    """As in pyproject.toml."""
    commit: str
    """The first digits of the commit's id; '' if unknown."""
    date: str
    """The date of the commit, for instance 2026-11-28; '' if unknown."""

    @property
    def short(self) -> str:
        """Return number and commit, as in `0.1.0+1a2b3c4d5e6f`: for nodes' messages and labels of metrics."""
        return f"{self.number}+{self.commit}" if self.commit else self.number

    @property
    def text(self) -> str:
        """Return all that is known, for people."""
        day = f" of {self.date}" if self.date else ""
        return f"{self.number}, commit {self.commit}{day}" if self.commit else f"{self.number}, of an unknown commit"


@functools.cache
def running() -> ProgramVersion:
    """Return the version of this process. In a checkout it has no date: that would need git."""
    import importlib.metadata  # commands that don't need it start faster

    number = importlib.metadata.version("skerry")
    kept = parse((Path(__file__).parent / "commit.txt").read_text(encoding="utf-8"))
    commit, date = kept or (of_checkout(_root()), "")
    return ProgramVersion(number, commit[:LENGTH], date)


def told() -> str:
    """Return the version, in a checkout with the commit's date too, which git is asked for."""
    version = running()
    if version.commit and not version.date:
        import subprocess

        command = ["git", "-C", str(_root()), "show", "--no-patch", "--format=%cs", version.commit]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
            version = version._replace(date=done.stdout.strip())
    return version.text


def parse(text: str) -> tuple[str, str] | None:
    """Return the commit and its date from the text of `commit.txt`; None if it hasn't been filled in."""
    commit, _, date = text.strip().partition(" ")
    return None if "$" in text or not commit else (commit, date)


def of_checkout(root: Path) -> str:
    """Return the id of the commit that is checked out in a folder, or ''.

    It is read from git's long-standing files; with another format (reftables) it isn't known.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        git = root / ".git"
        if git.is_file():  # in a worktree it says where the folder is
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        shared = git / "commondir"
        folders = [git, git / shared.read_text(encoding="utf-8").strip()] if shared.exists() else [git]
        for folder in folders:
            if (folder / name).exists():
                return (folder / name).read_text(encoding="utf-8").strip()
        for line in (folders[-1] / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, ref = line.partition(" ")
            if ref == name:
                return commit
    return ""


def _root() -> Path:
    return Path(__file__).parents[2]
