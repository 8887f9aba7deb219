"""Imports the front's modules that mypyc compiled (`just compile`) instead of their sources, if they match.

They are in a separate folder: beside their sources, Python would import them whatever they were built from. All of them
are used if they were built for this Python from exactly these sources; otherwise none. The sources include every module
of ours that they import, since constants of other modules are built in.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Final, NamedTuple

SETTING: Final = "SKERRY_EDGE_PURE"
"""An environment variable: if it is set to a value, nothing built is used."""
STAMP: Final = "stamp.json"
"""The file that says what was built: `suffix` (of the compiled modules' files, which identifies the Python), `modules`,
and `sources`, the sha256 in hex of each by path."""
SUFFIX: Final = EXTENSION_SUFFIXES[0]
_CURE: Final = "`just compile` builds it"


class BuiltPart(NamedTuple):
    """Whether a part of the edge runtime runs as machine code that was built from it."""

    runs: bool
    why: str = ""
    """Why it doesn't, in words; empty if it does."""
    stale: bool = False
    """Something is built but doesn't match: it is from other sources or for another Python."""


class CompiledModules:
    """The modules in one folder; a finder for `sys.meta_path`.

    A module NAME is the file NAME + `SUFFIX`. The file whose name has no dot contains all the code; the others only
    load it.
    """

    def __init__(self, folder: str, root: str, environ: Mapping[str, str]) -> None:
        """`root`: the folder that the sources' paths are relative to."""
        self._folder = folder
        self._root = root
        self._part: BuiltPart | None = None
        self._files: dict[str, str] = {}
        """Files by module name."""
        if environ.get(SETTING):
            self._part = BuiltPart(False, f"{SETTING} is set")
            return
        try:
            there = os.listdir(folder)
        except OSError:
            self._part = BuiltPart(False, f"it isn't built; {_CURE}")
            return
        self._files = {file.removesuffix(SUFFIX): f"{folder}/{file}" for file in there if file.endswith(SUFFIX)}

    def part(self) -> BuiltPart:
        """Return whether the compiled modules run. The first call reads the sources, which takes a few milliseconds."""
        if self._part is None:
            why = self._unfit()
            # Set before the code is loaded, since loading needs it.
            self._part = BuiltPart(not why, why, stale=bool(why))
            if not why:
                self._load()
        return self._part

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is, if it is one of these; called for every imported module."""
        file = self._files.get(fullname)
        if file is None or not self.part().runs:
            return None
        spec = ModuleSpec(fullname, ExtensionFileLoader(fullname, file), origin=file)
        spec.has_location = True
        return spec

    def _unfit(self) -> str:
        """Return why the files can't be used; empty if they can."""
        # Imported late: programs that use none of these modules need neither.
        import hashlib
        import json

        try:
            with open(f"{self._folder}/{STAMP}", "rb") as file:
                stamp = json.load(file)
            suffix, modules, sources = stamp["suffix"], set(stamp["modules"]), dict(stamp["sources"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"what is built has no stamp that can be read, {error!r}; {_CURE} anew"
        if suffix != SUFFIX:
            return f"it is built for another Python ({suffix}, and this one has {SUFFIX}); {_CURE} anew"
        if modules != self._files.keys():
            return f"files of what was built are missing, or there are others beside them; {_CURE} anew"
        for name, expected in sources.items():
            try:
                with open(f"{self._root}/{name}", "rb") as file:
                    found = hashlib.sha256(file.read(), usedforsecurity=False).hexdigest()
            except OSError:
                found = ""
            if found != expected:
                return f"it is built from another {name} than is here; {_CURE} anew"
        return ""

    def _load(self) -> None:
        """Load the code of all modules, so that none of them is used if that fails."""
        for name in self._files:
            if "." not in name:
                try:
                    __import__(name)
                except ImportError as error:
                    self._part = BuiltPart(False, f"what is built can't be loaded: {error}; {_CURE} anew", stale=True)


_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FRONT: Final = CompiledModules(f"{_PACKAGE}/built/front", os.path.dirname(_PACKAGE), os.environ)
"""The front's compiled modules."""


def install() -> None:
    """Make Python's import find the front's compiled modules."""
    if FRONT not in sys.meta_path:
        sys.meta_path.insert(0, FRONT)
