"""The environment of programs that tests start."""

import os
from typing import Final

PURE: Final = "SKERRY_EDGE_PURE"
"""Has the edge runtime use nothing that `just compile` has built; `just test-pure` sets it."""


def without_settings() -> dict[str, str]:
    """Return this process's environment without Skerry's variables, but for `PURE`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SKERRY_") or name == PURE}
