"""The packages that scripts/packages has built, and later versions of them."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.packages.machine import ROOT, Machine

NAMES = ("skerry-control", "skerry-edge")
SETTINGS = {"skerry-control": "/etc/skerry/control.env", "skerry-edge": "/etc/skerry/edge.env"}


@dataclass(frozen=True)
class Package:
    """A package: its file here, and where a machine has been given it."""

    name: str
    version: str
    file: Path

    @property
    def path(self) -> str:
        return f"/root/{self.file.name}"

    def give(self, machine: Machine) -> str:
        """Copy it into the machine, and return its path there."""
        machine.put(self.file, self.path)
        return self.path


def built() -> dict[str, Package]:
    """Return the packages in dist/, by name.

    Raises:
        RuntimeError: There isn't one of each.
    """
    found = {}
    for name in NAMES:
        files = sorted((ROOT / "dist").glob(f"{name}_*.deb"))
        if len(files) != 1:
            raise RuntimeError(f"dist/ has {len(files)} packages {name}: scripts/packages makes it")
        found[name] = Package(name, field(files[0], "Version"), files[0])
    return found


def field(file: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "-f", file, name], capture_output=True, text=True, check=True).stdout.strip()


def later(package: Package, folder: Path) -> Package:
    """Return the same package with a later version, and with a line more in the settings that it brings."""
    version = f"{package.version}+later"
    tree = folder / package.name
    subprocess.run(["dpkg-deb", "-R", package.file, tree], check=True)
    control = tree / "DEBIAN" / "control"
    text = control.read_text("utf-8")
    assert text.count(f"Version: {package.version}\n") == 1
    control.write_text(text.replace(f"Version: {package.version}\n", f"Version: {version}\n"), "utf-8")
    settings = tree / SETTINGS[package.name].removeprefix("/")
    settings.write_text(f"{settings.read_text('utf-8')}\n# New in this version.\n", "utf-8")
    file = folder / f"{package.name}_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, file], check=True, capture_output=True)
    shutil.rmtree(tree)
    return Package(package.name, version, file)
