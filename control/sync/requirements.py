"""What functions need of a node, and which nodes lack it: pure rules over values, without I/O.

A node refuses a plan with an ABI or a manifest's field that its version doesn't know
(`edge_runtime.sync.plan_check`). The same rule over the node's capabilities finds that out before a release is made. A
node that hasn't sent its capabilities counts as able: it checks plans itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from control.problems import ProblemError
from control.protocol import wire
from control.protocol.manifest import MANIFEST_FIELDS

LIMIT: Final = 16 * 1024
"""Maximum bytes of a node's capabilities, and of its labels, as JSON."""
FUNCTIONS_SHOWN: Final = 3
"""Maximum functions that a text names for a need."""

_STRUCTS: Final = {field.rpartition(".")[0] for field in MANIFEST_FIELDS} - {""}
"""The fields of a manifest that have subfields; the others hold values."""


_KINDS: Final = {"abi": "the ABI", "manifest": "the manifest's field", "schema": "schema changes with"}


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """Something that a node must know to run a function, or to apply a schema change."""

    kind: Literal["abi", "manifest", "schema"]
    """The list of a node's capabilities that must have it."""
    name: str
    """An ABI, the path of a field (``http.hosts``), or what a schema change may have."""

    def __str__(self) -> str:
        return f"{_KINDS[self.kind]} {self.name}"


Needs = Mapping[Need, Sequence[str]]
"""The needs of a release, and the functions or schema changes that have each need."""
STEPS: Final = Need("schema", "steps")
"""What a node must know to apply a change with lines ``-- skerry: …``."""


def check(field: str, value: object) -> None:
    """Check that a node's labels or capabilities can be stored. Raises: ProblemError invalid_body, when they can't."""
    try:
        size = len(wire.canonical(value))
    except (TypeError, RecursionError):
        raise ProblemError("invalid_body", "it is nested too deeply", field=field) from None
    if size > LIMIT:
        raise ProblemError("invalid_body", f"it has {LIMIT} bytes at most, as JSON, and not {size}", field=field)


def needs(manifests: Mapping[str, Mapping[str, Any]]) -> dict[Need, list[str]]:
    """Return what functions need, by their manifests; `manifests` are by the function's name."""
    found: dict[Need, list[str]] = {}
    for name in sorted(manifests):
        for need in _needs(manifests[name]):
            found.setdefault(need, []).append(name)
    return found


def lacks(capabilities: Mapping[str, Any], needs: Iterable[Need]) -> list[Need]:
    """Return the `needs` that a node with these capabilities lacks; for a missing field, not its subfields."""
    told = {kind: known for kind in ("abi", "manifest") if isinstance(known := capabilities.get(kind), list)}
    if "manifest" in told:
        # Versions that reported capabilities before steps existed.
        told["schema"] = known if isinstance(known := capabilities.get("schema"), list) else []
    lacking = {need for need in needs if need.kind in told and need.name not in told[need.kind]}
    return sorted(need for need in lacking if Need(need.kind, need.name.rpartition(".")[0]) not in lacking)


def shown(need: Need, functions: Sequence[str]) -> str:
    """Return a need and the functions that have it, as text."""
    return f"{need} (for {listed(functions, FUNCTIONS_SHOWN, len(functions))})"


def listed(texts: Sequence[str], most: int, count: int, separator: str = ", ") -> str:
    """Return the first `most` of `count` texts, and how many others there are."""
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
