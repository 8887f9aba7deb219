"""Puts the commit into wheels and source archives (control/protocol/version.py). Hatchling runs it.

It also tags a wheel that has machine code with its Python and machine.
"""

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE = "control/protocol/commit.txt"
COMPILED = ("edge_runtime/built/front", "edge_runtime/native/built")


class WheelCommit(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the commit and its date into the file that git fills in for its own archives."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file to the build, unless that is this folder itself, or the file is already filled in."""
        compiled = any(Path(self.root, folder).is_dir() for folder in COMPILED)
        if version == "standard" and self.target_name == "wheel" and compiled:
            build_data |= {"pure_python": False, "infer_tag": True}
        if version == "editable" or "$" not in (Path(self.root) / FILE).read_text(encoding="utf-8"):
            return
        command = ["git", "-C", self.root, "show", "--no-patch", "--format=%H %cs", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the commit isn't known, as git doesn't say it: {error}")
            return
        self._folder = TemporaryDirectory()
        made = Path(self._folder.name) / "commit.txt"
        made.write_text(done.stdout, encoding="utf-8")
        build_data["force_include"][str(made)] = FILE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the generated file."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
