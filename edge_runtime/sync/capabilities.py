"""The node's capabilities, which control compares with a release before the release is made.

They are sent with the join, and again if control doesn't know their digest, which each poll contains.
"""

import hashlib
import platform
import sys
from typing import Final

from control.protocol import version, wire
from control.protocol.manifest import MANIFEST_FIELDS
from edge_runtime.sync import watch_answers

ABIS: Final = ("wagi", "extism", "direct")


def document() -> dict[str, object]:
    """Return what this node can run and what it runs on, which is constant until the process exits."""
    return {
        "version": version.running().short,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": sys.platform,
        "abi": list(ABIS),
        # `plan_check.parse_manifest` refuses every other field.
        "manifest": list(MANIFEST_FIELDS),
        "schema": ["steps"],
        # What operators may request.
        "questions": list(watch_answers.KINDS),
    }


def digest(document: dict[str, object]) -> str:
    """Return the sha256 over a document and this node's version of the protocol."""
    return hashlib.sha256(wire.canonical([wire.PROTOCOL, document])).hexdigest()
