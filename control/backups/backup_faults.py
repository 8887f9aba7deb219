"""What can be wrong with a node's backup, with the bounds by which lists, counts and pages call it so."""

from datetime import timedelta
from typing import Final, Literal

Fault = Literal["missing", "failing", "late", "drill", "unproven"]
"""`missing`: there should be one, and no history goes on; `failing`: the node says that it doesn't go on; `late`: the
store is too far behind the node; `drill`: control's last try to restore it didn't work; `unproven`: no restore of it
was proven for too long."""

LEAST_LATE: Final = 300.0
"""Seconds by which the store may be behind a node in any case."""
LATE_INTERVALS: Final = 3.0
"""By how many of its intervals it may be behind; one and a half is usual."""
PROVEN_LATE: Final = timedelta(days=3)
"""How long after its last proof, or its beginning, a history counts as not proven: control proves each daily."""


def late_after(interval: float) -> float:
    """Return by how many seconds the store may be behind a node that uploads each `interval` seconds."""
    return max(LEAST_LATE, LATE_INTERVALS * interval)
