"""The version of Skerry before this one, beside it: made of the commit that `tests/previous_version` names.

It is any commit that this version has to work with, and moves on when a version is released.
"""

import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMIT = (ROOT / "tests" / "previous_version").read_text(encoding="utf-8").strip()
PACKAGES = "lock/run.lock"
"""What control and a node need."""


@dataclass(frozen=True)
class Previous:
    """The version before, ready to run."""

    commit: str
    python: str
    """A Python that has it and its packages, in processes that it starts, too."""


def missing() -> str:
    """Why there is no version before to run; '' if there is one."""
    try:
        subprocess.run(["git", "-C", ROOT, "cat-file", "-e", f"{COMMIT}^{{commit}}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return (
            f"the version before is commit {COMMIT[:12]} (tests/previous_version), and its history isn't here: "
            "no version is run beside another in an archive or a shallow clone"
        )
    return ""


def build(folder: Path) -> Previous:
    """Make it in an empty folder."""
    tree, environment = folder / "tree", folder / "venv"
    tree.mkdir()
    archive = folder / "tree.tar"
    subprocess.run(["git", "-C", ROOT, "archive", "--output", archive, COMMIT], check=True)
    subprocess.run(["tar", "-xf", archive, "-C", tree], check=True)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    if (tree / PACKAGES).read_bytes() == (ROOT / PACKAGES).read_bytes():
        # The packages that run this. Of two places that have a module, the first one counts.
        lines = (str(tree), f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})")
        place = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
        Path(place, "skerry-before.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        subprocess.run([*pip, "--require-hashes", "--requirement", tree / PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", tree], check=True)
    return Previous(COMMIT, str(python))
