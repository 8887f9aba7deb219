"""Settings for a pool of its own, without a node."""

from pathlib import Path
from typing import Any

from edge_runtime.settings import EdgeSettings


class _OnAnyMachine(EdgeSettings):
    few = 1


def pool_settings(workers: int, **given: Any) -> EdgeSettings:
    """Return settings that don't depend on the machine's processors: a function has one worker by default."""
    return _OnAnyMachine(Path("state"), workers=workers, **{"concurrency": 1, **given})
