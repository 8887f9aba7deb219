"""What control is told of this node: control compares a release with it before the release is made.

It goes with the join, and later where control says that it doesn't know the digest that each poll has.
"""

import hashlib
import platform
import sys
from typing import Final

from control import wire

ABIS: Final = ("wagi", "extism", "direct")


def document() -> dict[str, object]:
    """What this node can run and what it runs on. It is the same until the process ends."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": sys.platform,
        "abi": list(ABIS),
        # `rules.parse_manifest` refuses every other field.
        "manifest": list(wire.MANIFEST_FIELDS),
    }


def digest(document: dict[str, object]) -> str:
    """sha256 over a document and the protocol that this node speaks."""
    return hashlib.sha256(wire.canonical([wire.PROTOCOL, document])).hexdigest()
