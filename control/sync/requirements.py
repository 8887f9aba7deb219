"""What nodes can run and what functions need of them: rules over values, without I/O.

A node that gets a plan reads each manifest as its version knows manifests, and refuses one with an ABI or a field that
it doesn't know (`edge_runtime.sync.rules`). The same rule over what the node has told finds it out before a release is
made.
What a node hasn't told isn't held against it: it looks for itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from control import wire
from control.problems import ProblemError

LIMIT: Final = 16 * 1024
"""Bytes of a node's capabilities, and of its labels, as JSON."""
FUNCTIONS_SHOWN: Final = 3
"""Of those that have a need, in a text."""

_STRUCTS: Final = {field.rpartition(".")[0] for field in wire.MANIFEST_FIELDS} - {""}
"""The fields of a manifest that have fields of their own; what others hold are values."""


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """Something that a node must know for a function's sake."""

    kind: Literal["abi", "manifest"]
    """The list of a node's capabilities that must have it."""
    name: str
    """An ABI, or the path of a field: ``http.hosts``."""

    def __str__(self) -> str:
        return f"the ABI {self.name}" if self.kind == "abi" else f"the manifest's field {self.name}"


Needs = Mapping[Need, Sequence[str]]
"""What a release needs, with the functions that do."""


def check(field: str, value: object) -> None:
    """Refuse what a node says of itself where it can't be kept: ProblemError invalid_body."""
    try:
        size = len(wire.canonical(value))
    except (TypeError, RecursionError):
        raise ProblemError("invalid_body", "it is nested too deeply", field=field) from None
    if size > LIMIT:
        raise ProblemError("invalid_body", f"it has {LIMIT} bytes at most, as JSON, and not {size}", field=field)


def needs(manifests: Mapping[str, Mapping[str, Any]]) -> dict[Need, list[str]]:
    """What functions need, from their manifests as control keeps them, by name."""
    found: dict[Need, list[str]] = {}
    for name in sorted(manifests):
        for need in _needs(manifests[name]):
            found.setdefault(need, []).append(name)
    return found


def lacks(capabilities: Mapping[str, Any], needs: Iterable[Need]) -> list[Need]:
    """Those of `needs` that a node with these capabilities doesn't know; of a field that it lacks whole, only that."""
    told = {kind: known for kind in ("abi", "manifest") if isinstance(known := capabilities.get(kind), list)}
    lacking = {need for need in needs if need.kind in told and need.name not in told[need.kind]}
    return sorted(need for need in lacking if Need(need.kind, need.name.rpartition(".")[0]) not in lacking)


def shown(need: Need, functions: Sequence[str]) -> str:
    """What is needed and by whom, for people."""
    return f"{need} (for {listed(functions, FUNCTIONS_SHOWN, len(functions))})"


def listed(texts: Sequence[str], most: int, count: int, separator: str = ", ") -> str:
    """The first of `count` things, and how many others there are."""
    first = separator.join(texts[:most])
    others = count - len(texts[:most])
    return f"{first} and {others} {'others' if others > 1 else 'other'}" if others else first


def _needs(manifest: Mapping[str, Any]) -> Iterator[Need]:
    if manifest.get("abi"):
        yield Need("abi", manifest["abi"])
    for path in _paths(manifest):
        yield Need("manifest", path)


def _paths(value: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, inner in value.items():
        path = f"{above}{name}"
        yield path
        if path in _STRUCTS and isinstance(inner, Mapping):
            yield from _paths(inner, f"{path}.")
