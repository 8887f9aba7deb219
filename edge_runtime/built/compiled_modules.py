"""Has the front's modules that mypyc compiled (`just compile`) imported in the place of their sources, where they fit.

They lie in a folder of their own: beside their sources Python would take them, whatever they were built from. They are
taken all together, if they were built for this Python from the very sources that lie here, and else none of them. What
counts as a source is also each module of ours that they import: constants of others are built in.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Final, NamedTuple

SETTING: Final = "SKERRY_EDGE_PURE"
"""A variable of the environment: with a value in it, nothing that is built is used."""
STAMP: Final = "stamp.json"
"""The file that says what was built: `suffix` (of the compiled modules' files, by which Python knows its own),
`modules`, and `sources`, by path the sha256 in hex of each."""
SUFFIX: Final = EXTENSION_SUFFIXES[0]
_CURE: Final = "`just compile` builds it"


class BuiltPart(NamedTuple):
    """Whether a part of the edge runtime runs as machine code that was built for it."""

    runs: bool
    why: str = ""
    """Why it doesn't, for a person; empty where it does."""
    stale: bool = False
    """Something is built, and doesn't fit: from other sources, or for another Python."""


class CompiledModules:
    """The modules in one folder; a finder as `sys.meta_path` has them.

    A module NAME is the file NAME + `SUFFIX`. One file without a point in its name has the code of all; the others only
    begin it.
    """

    def __init__(self, folder: str, root: str, environ: Mapping[str, str]) -> None:
        """`root`: the folder that the sources' paths begin at."""
        self._folder = folder
        self._root = root
        self._part: BuiltPart | None = None
        self._files: dict[str, str] = {}
        """By the names of the modules."""
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
        """Return whether they are what runs. Where that is still open, the sources are read: a few milliseconds."""
        if self._part is None:
            why = self._unfit()
            # Before the code is loaded, which asks here.
            self._part = BuiltPart(not why, why, stale=bool(why))
            if not why:
                self._load()
        return self._part

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is, if it is one of these; asked for each module that is imported."""
        file = self._files.get(fullname)
        if file is None or not self.part().runs:
            return None
        spec = ModuleSpec(fullname, ExtensionFileLoader(fullname, file), origin=file)
        spec.has_location = True
        return spec

    def _unfit(self) -> str:
        """Return why the files aren't to be used; empty if they are."""
        # Here, since the programs that import none of these modules need neither.
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
        """Load the code of all modules, so that none of them is used where that fails."""
        for name in self._files:
            if "." not in name:
                try:
                    __import__(name)
                except ImportError as error:
                    self._part = BuiltPart(False, f"what is built can't be loaded: {error}; {_CURE} anew", stale=True)


_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FRONT: Final = CompiledModules(f"{_PACKAGE}/built/front", os.path.dirname(_PACKAGE), os.environ)
"""Those of the front."""


def install() -> None:
    """Have them found."""
    if FRONT not in sys.meta_path:
        sys.meta_path.insert(0, FRONT)
