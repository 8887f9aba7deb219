"""The parts of the edge runtime that `just compile` builds, and how each runs here: for log, status and `doctor`."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from edge_runtime.built import compiled_modules
from edge_runtime.built.compiled_modules import BuiltPart
from edge_runtime.native import library


def _loop() -> BuiltPart:
    why = library.unfit()
    return BuiltPart(True) if why is None else BuiltPart(False, str(why), why.stale)


PARTS: Final[Mapping[str, Callable[[], BuiltPart]]] = {
    "front": compiled_modules.FRONT.part,
    "workers' loop": _loop,
}
"""Functions that return how each part runs, by the part's display name."""


def document(workers: str = "") -> dict[str, dict[str, Any]]:
    """Return how each part runs: whether `compiled`, `why` not, and whether what is built is `stale`. `workers` is the
    reason that a running node's workers gave for not running theirs; empty if they do."""
    parts = {name: part() for name, part in PARTS.items()}
    if workers and parts["workers' loop"].runs:
        parts["workers' loop"] = BuiltPart(False, workers, stale=True)
    return {name: {"compiled": part.runs, "why": part.why or None, "stale": part.stale} for name, part in parts.items()}


def told(name: str, part: Mapping[str, Any]) -> str:
    """Return, in words, how a part of the `document` runs; no period at the end."""
    return f"the {name} is compiled" if part["compiled"] else f"the {name} is not compiled: {part['why']}"
