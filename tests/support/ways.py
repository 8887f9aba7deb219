"""How tests' releases go out."""

from collections.abc import Mapping
from typing import Any


def at_once(body: Mapping[str, Any]) -> dict[str, bool]:
    """What sends a release to all nodes at once, unless its `body` says how it goes out.

    Nodes that don't rehearse it would leave its rehearsal without an answer.
    """
    return {} if {"now", "rollout", "rehearsal_only"} & body.keys() else {"now": True}
