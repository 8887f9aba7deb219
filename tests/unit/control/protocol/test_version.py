"""Which commit a program says that it is of: in a checkout, a worktree, an archive of git's."""

import subprocess
from pathlib import Path

import pytest

from control.protocol import version

ROOT = Path(version.__file__).parents[2]
UNFILLED = "$Format:%H %cs$\n"


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *settings, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    return folder


def test_the_commit_of_a_checkout_is_read_from_its_files(repository: Path, tmp_path: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert version.of_checkout(repository) == head
    git(repository, "pack-refs", "--all")
    assert version.of_checkout(repository) == head
    git(repository, "checkout", "--quiet", "--detach")
    assert version.of_checkout(repository) == head
    worktree = tmp_path / "worktree"
    git(repository, "worktree", "add", "--quiet", "-b", "other/branch", str(worktree))
    assert version.of_checkout(worktree) == head
    git(worktree, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert version.of_checkout(worktree) == git(worktree, "rev-parse", "HEAD") != head


def test_without_git_no_commit_is_known(tmp_path: Path) -> None:
    assert version.of_checkout(tmp_path) == ""
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")
    assert version.of_checkout(tmp_path) == ""


def test_what_git_and_a_wheel_fill_in_is_read() -> None:
    assert version.parse("1a2b3c4d5e6f7890 2026-11-28\n") == ("1a2b3c4d5e6f7890", "2026-11-28")
    # As it is in a checkout, and in a wheel that was made without git.
    assert version.parse(UNFILLED) is None


def test_git_fills_it_in_in_its_archives(repository: Path, tmp_path: Path) -> None:
    (repository / "control" / "protocol").mkdir(parents=True)
    (repository / "control" / "protocol" / "commit.txt").write_text(UNFILLED)
    (repository / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "second")
    git(repository, "archive", "--output", str(tmp_path / "archive.tar"), "HEAD")
    subprocess.run(["tar", "-xf", tmp_path / "archive.tar", "-C", tmp_path], check=True)
    found = version.parse((tmp_path / "control" / "protocol" / "commit.txt").read_text())
    assert found == (git(repository, "rev-parse", "HEAD"), git(repository, "show", "--no-patch", "--format=%cs"))


def test_texts() -> None:
    known = version.ProgramVersion("0.1.0", "1a2b3c4d5e6f", "2026-11-28")
    assert (known.short, known.text) == ("0.1.0+1a2b3c4d5e6f", "0.1.0, commit 1a2b3c4d5e6f of 2026-11-28")
    assert known._replace(date="").text == "0.1.0, commit 1a2b3c4d5e6f"
    assert known._replace(commit="", date="").short == "0.1.0"
    # Nodes tell it with their numbers, in which older versions of control take 32 characters.
    assert len(version.running().short) <= 32
